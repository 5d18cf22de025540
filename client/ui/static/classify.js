"use strict";
// Images are sent one by one, a few at a time; if no server is available, they wait.

const AT_ONCE = 3;
const EXITED = "the process of this page has exited. Start it again with: plurum ui";
const RETRY_MS = 2000;
const list = document.getElementById("answers");
const drop = document.getElementById("drop");
const input = document.getElementById("files");
const away = document.getElementById("away");
const served = document.getElementById("served");
const queue = [];
let underWay = 0;
let retrying = false;
let counted = 0;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function say(text) {
  document.getElementById("said").textContent = text;
}

function placeholder(file) {
  const item = element("li");
  const card = element("article", "answer");
  const picture = element("img", "picture");
  picture.alt = "";
  picture.src = URL.createObjectURL(file);
  picture.onload = picture.onerror = () => URL.revokeObjectURL(picture.src);
  const told = element("div", "told");
  told.append(element("p", "file", file.name), element("p", "state", "Classifying…"));
  card.append(picture, told);
  item.append(card);
  return item;
}

function state(job, text, kind) {
  const line = job.item.querySelector(".state");
  line.textContent = text;
  line.className = `state ${kind}`;
}

function add(files) {
  const jobs = Array.from(files, (file) => ({ file, item: placeholder(file) }));
  list.prepend(...jobs.map((job) => job.item));
  queue.push(...jobs);
  next();
}

function next() {
  while (!retrying && underWay < AT_ONCE && queue.length) {
    underWay += 1;
    classify(queue.shift()).finally(() => {
      underWay -= 1;
      next();
    });
  }
}

function failed(job, reason) {
  state(job, `No prediction: ${reason}`, "failed");
  job.item.querySelector("img").remove();
  job.item.firstChild.classList.add("broken");
  say(`${job.file.name}: no prediction, ${reason}`);
}

async function classify(job) {
  const limit = Number(served.dataset.limit);
  if (job.file.size > limit * 2 ** 20) return failed(job, `this file is larger than ${limit} MiB`);
  state(job, "Classifying…", "");
  let response;
  try {
    // A file name may hold halves of surrogate pairs, which can't be encoded.
    const headers = { "X-File-Name": encodeURIComponent(job.file.name.replace(/[\uD800-\uDFFF]/gu, "\uFFFD")) };
    response = await fetch("/answers", { method: "POST", body: job.file, headers });
    if (response.ok) {
      job.item.innerHTML = await response.text();
      count(response.headers.get("x-waiting"), Number(response.headers.get("x-counted")));
      const heading = job.item.querySelector("h2").textContent.trim().replace(/\s+/g, " ");
      return say(`${job.file.name}: ${heading}, ${job.item.querySelector(".badge").textContent}`);
    }
  } catch (error) {
    return wait(job, EXITED);
  }
  const reason = (await response.json().catch(() => ({ error: `status ${response.status}` }))).error;
  return response.status === 503 ? wait(job, reason) : failed(job, reason);
}

function wait(job, reason) {
  state(job, "Waiting for the server", "waits");
  queue.unshift(job);
  unavailable(reason);
}

function unavailable(reason) {
  document.getElementById("away-reason").textContent = `${reason.charAt(0).toUpperCase()}${reason.slice(1).replace(/\.$/, "")}.`;
  away.hidden = false;
  served.className = "served away-dot";
  document.getElementById("served-line").textContent = "no server";
  if (!retrying) {
    retrying = true;
    setTimeout(reconnect, RETRY_MS);
  }
}

function showDecisions(sentences) {
  const list = document.getElementById("decisions");
  list.replaceChildren(...sentences.map((sentence) => {
    const item = document.createElement("li");
    item.textContent = sentence.charAt(0).toUpperCase() + sentence.slice(1);
    return item;
  }));
  list.hidden = sentences.length === 0;
}

async function reconnect() {
  let reason;
  try {
    const response = await fetch("/served");
    const body = await response.json();
    if (response.ok) {
      retrying = false;
      away.hidden = true;
      served.className = "served here-dot";
      document.getElementById("served-line").textContent = body.line;
      showDecisions(body.decisions);
      return next();
    }
    reason = body.error;
  } catch (error) {
    reason = EXITED;
  }
  retrying = false;
  return unavailable(reason);
}

// Responses can overtake each other: keep the latest count.
function count(waiting, moment) {
  if (waiting === null || moment < counted) return;
  counted = moment;
  const link = document.querySelector('nav a[href="/review"]');
  let mark = document.getElementById("waiting");
  if (!mark) {
    mark = element("span", "count");
    mark.id = "waiting";
    link.append(" ", mark);
  }
  mark.hidden = waiting === "0";
  mark.replaceChildren(waiting, element("span", "unseen", " waiting"));
}

async function send(form) {
  const response = await fetch(form.action, { method: "POST", headers: { "X-Stay": "1" } });
  const body = await response.json();
  if (!response.ok) return form.replaceWith(element("p", "why reason", body.error));
  const line = element("p", "why", "Sent to review. ");
  const link = element("a", "", "Review it");
  link.href = body.item;
  line.append(link);
  count(String(body.waiting), body.counted);
  say("Sent to review");
  form.replaceWith(line);
  return link.focus();
}

input.addEventListener("change", () => {
  add(input.files);
  input.value = "";
});
list.addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.target);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
// Anywhere on the page: the browser would open a file that is dropped elsewhere.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add(event.dataTransfer.files);
});
reconnect();
