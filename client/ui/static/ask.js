"use strict";
// Images go one by one, a few at a time; what the server can't take now waits until it is back.

const AT_ONCE = 3;
const LOOK_MS = 2000;
const list = document.getElementById("answers");
const drop = document.getElementById("drop");
const input = document.getElementById("files");
const away = document.getElementById("away");
const served = document.getElementById("served");
const queue = [];
let underWay = 0;
let looking = false;
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
  told.append(element("p", "file", file.name), element("p", "state", "Asking…"));
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
  while (!looking && underWay < AT_ONCE && queue.length) {
    underWay += 1;
    ask(queue.shift()).finally(() => {
      underWay -= 1;
      next();
    });
  }
}

function failed(job, reason) {
  state(job, `No answer: ${reason}`, "failed");
  job.item.querySelector("img").remove();
  job.item.firstChild.classList.add("broken");
  say(`${job.file.name}: no answer, ${reason}`);
}

async function ask(job) {
  const limit = Number(served.dataset.limit);
  if (job.file.size > limit * 2 ** 20) return failed(job, `this file is larger than ${limit} MiB`);
  state(job, "Asking…", "");
  let answer;
  try {
    // Halves of surrogate pairs, which a file's name may hold, can't be encoded.
    const headers = { "X-File-Name": encodeURIComponent(job.file.name.replace(/[\uD800-\uDFFF]/gu, "\uFFFD")) };
    answer = await fetch("/answers", { method: "POST", body: job.file, headers });
    if (answer.ok) {
      job.item.innerHTML = await answer.text();
      count(answer.headers.get("x-waiting"), Number(answer.headers.get("x-counted")));
      const heading = job.item.querySelector("h2").textContent.trim().replace(/\s+/g, " ");
      return say(`${job.file.name}: ${heading}, ${job.item.querySelector(".badge").textContent}`);
    }
  } catch (error) {
    return wait(job, "this page’s own server has ended; start it again with: plurum ui");
  }
  const reason = (await answer.json().catch(() => ({ error: `status ${answer.status}` }))).error;
  return answer.status === 503 ? wait(job, reason) : failed(job, reason);
}

function wait(job, reason) {
  state(job, "Waits for the server", "waits");
  queue.unshift(job);
  gone(reason);
}

function gone(reason) {
  document.getElementById("away-reason").textContent = `${reason.charAt(0).toUpperCase()}${reason.slice(1)}.`;
  away.hidden = false;
  served.className = "served away-dot";
  document.getElementById("served-line").textContent = "no server";
  if (!looking) {
    looking = true;
    setTimeout(look, LOOK_MS);
  }
}

async function look() {
  let reason;
  try {
    const answer = await fetch("/served");
    const told = await answer.json();
    if (answer.ok) {
      looking = false;
      away.hidden = true;
      served.className = "served here-dot";
      document.getElementById("served-line").textContent = told.line;
      return next();
    }
    reason = told.error;
  } catch (error) {
    reason = "this page’s own server has ended; start it again with: plurum ui";
  }
  looking = false;
  return gone(reason);
}

// Answers overtake each other on their way here: what was counted last stays.
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
  const answer = await fetch(form.action, { method: "POST", headers: { "X-Stay": "1" } });
  const told = await answer.json();
  if (!answer.ok) return form.replaceWith(element("p", "why reason", told.error));
  const line = element("p", "why", "Sent to review. ");
  const link = element("a", "", "Review it");
  link.href = told.item;
  line.append(link);
  count(String(told.waiting), told.counted);
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
// Anywhere on the page: a file dropped beside the frame would replace the page.
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
look();
