"use strict";
// Keyboard shortcuts: each element states its keys in data-key.

const form = document.getElementById("decision");
const save = document.getElementById("save");
const find = document.getElementById("find");

function name() {
  const chosen = form.querySelector("input[name=label]:checked");
  const verb = chosen && chosen.value === save.dataset.predicted ? "Confirm" : "Correct to";
  document.getElementById("save-line").textContent = chosen ? `${verb} “${chosen.value}”` : "Choose a class";
}

function isNative(target, key) {
  if (target.matches("input[type=search]")) return true;
  return (key === "Enter" || key === " ") && target.matches("a, button, summary");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || isNative(event.target, event.key)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (find && key === "/") {
    event.preventDefault();
    find.focus();
    return;
  }
  const target = Array.from(document.querySelectorAll("[data-key]")).find((one) => one.dataset.key.split(" ").includes(key));
  if (!target) return;
  event.preventDefault();
  if (target.type === "radio") target.focus({ preventScroll: true });
  target.click();
});

document.addEventListener("click", (event) => {
  if (event.target.closest("[aria-disabled=true]")) event.preventDefault();
});

if (form) {
  let sent = false;
  form.addEventListener("change", name);
  form.addEventListener("submit", (event) => {
    // Pressing a key twice makes one decision.
    if (sent) event.preventDefault();
    sent = true;
  });
  window.addEventListener("pageshow", () => {
    sent = false;
    name();
  });
  name();
}

if (find) {
  const choices = Array.from(form.querySelectorAll(".classes label"));
  find.addEventListener("input", () => {
    const text = find.value.trim().toLowerCase();
    for (const one of choices) one.hidden = !one.querySelector("input").value.toLowerCase().includes(text);
  });
  find.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault();
    const first = choices.find((one) => !one.hidden);
    if (event.key === "Enter" && first) {
      first.querySelector("input").click();
      first.querySelector("input").focus();
    } else find.blur();
  });
}
