"use strict";
// What all pages share: where members looked is asked for when somebody wants to see it.

document.addEventListener("toggle", async (event) => {
  const details = event.target;
  if (!details.open || !details.dataset.evidence) return;
  const place = details.querySelector(".maps");
  const where = details.dataset.evidence;
  delete details.dataset.evidence;
  try {
    const answer = await fetch(where);
    if (answer.ok) place.innerHTML = await answer.text();
    else throw new Error((await answer.json()).error);
  } catch (error) {
    // Opened again, it is tried again.
    details.dataset.evidence = where;
    place.replaceChildren(Object.assign(document.createElement("p"), { className: "reason", textContent: error.message }));
  }
}, true);
