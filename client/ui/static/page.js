"use strict";
// Shared by all pages: load the Grad-CAM maps of an image when they are opened.

document.addEventListener("toggle", async (event) => {
  const details = event.target;
  if (!details.open || !details.dataset.evidence) return;
  const place = details.querySelector(".maps");
  const where = details.dataset.evidence;
  delete details.dataset.evidence;
  try {
    const response = await fetch(where);
    if (response.ok) place.innerHTML = await response.text();
    else throw new Error((await response.json()).error);
  } catch (error) {
    // Try again when they are opened again.
    details.dataset.evidence = where;
    place.replaceChildren(Object.assign(document.createElement("p"), { className: "reason", textContent: error.message }));
  }
}, true);
