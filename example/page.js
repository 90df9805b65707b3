// The page: a door, a room behind it, a chart beside it. What people write reaches the page as textContent only.

import { Chart } from "./chart.js";
import { Socket } from "./socket.js";

const FRAMES_SHOWN = 12;
const KEPT = 200; // messages that the server keeps of a room
const BROKER_DOWN = -32012;
const MISSING = "You are back. Some of what was said meanwhile is missing here.";

const element = (id) => document.getElementById(id);
const chart = new Chart(element("chart"));
// What makes this tab the same visitor when the page is loaded anew. Other tabs have others.
sessionStorage.tab ??= Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");
const socket = new Socket(`${location.origin.replace("http", "ws")}/ws?tab=${sessionStorage.tab}`);

// {room, name} while in a room, also while disconnected: it is entered again afterwards
let visit = JSON.parse(sessionStorage.visit ?? "null");
let present = new Map(); // users and their names
const load = { channel: "load", show: showLoad, restart: () => chart.clear() };
let chat = null; // what is said in the room, followed like the load

// -- the connection --------------------------------------------------------------------------------------------

socket.addEventListener("up", async () => {
  showStatus("up", "Connected");
  try {
    await follow(load);
    if (!visit) return;
    await enter(visit);
    await settle();
  } catch (error) {
    if (!error.code) return; // the connection is lost again, and all this is tried anew when it is back
    if (error.code === BROKER_DOWN) return socket.restart();
    showDoor();
    showErrors(element("door"), error);
  }
});

socket.addEventListener("down", ({ detail }) => {
  showStatus("down", detail.comesBack ? "Disconnected, trying again…" : "The server sent us away");
});

socket.addEventListener("message", ({ detail: message }) => {
  const feed = feedOf(message.channel);
  if (feed) take(feed, message);
});

socket.addEventListener("notice", ({ detail: { notice, data } }) => {
  const feed = feedOf(data?.channel);
  if (!feed) return;
  if (notice === "join") data.members.forEach(come);
  else if (notice === "leave") data.members.forEach(go);
  else if (notice === "presence") attempt(askWhoIsHere); // the server does not know who came and went meanwhile
  else if (notice === "gap") attempt(() => begin(feed));
});

socket.addEventListener("frame", ({ detail: { sent, frame, channel } }) => {
  if (channel === "load") return; // one a second would push everything else out
  const frames = element("frames");
  frames.append(item(sent ? "sent" : "received", frame));
  while (frames.children.length > FRAMES_SHOWN) frames.firstElementChild.remove();
});

/** Do what nobody waits for; where it fails, all is set up again. */
function attempt(action) {
  action().catch(() => socket.restart());
}

function feedOf(channel) {
  return [load, chat].find((feed) => feed && feed.channel === channel);
}

/** Show what a channel keeps and is not on the page yet, and then what comes: no hole, no double. */
async function follow(feed) {
  const { channel } = feed;
  if (!feed.position) {
    const kept = await socket.call("history", { channel, limit: KEPT, reverse: true });
    kept.messages.reverse().forEach((message) => take(feed, message));
    feed.position = kept.position;
  }
  const { recovered, messages } = await socket.call("subscribe", { channel, position: feed.position });
  messages.forEach((message) => take(feed, message));
  if (!recovered) await begin(feed);
}

/** Follow a channel of which something was missed for good. */
async function begin(feed) {
  feed.restart();
  await socket.call("unsubscribe", { channel: feed.channel, event: "*" }); // else what comes would also be in what is kept
  feed.position = null;
  await follow(feed);
}

function take(feed, message) {
  feed.show(message.data);
  feed.position = message.position;
}

function showStatus(state, text) {
  element("status").className = state;
  element("status").textContent = text;
}

// -- the room --------------------------------------------------------------------------------------------------

async function enter(wanted) {
  visit = await socket.call("enter", wanted);
  sessionStorage.visit = JSON.stringify(visit);
  const channel = `chat:${visit.room}`;
  if (chat?.channel !== channel) {
    chat = { channel, show: showSaid, restart: () => showLine("event", MISSING) };
    showRoom();
  }
}

/** Show who is in the room, and what is said there. */
async function settle() {
  await askWhoIsHere();
  await follow(chat);
}

async function askWhoIsHere() {
  const { channel } = chat;
  const found = new Map();
  for (let next; ; ) {
    const page = await socket.call("presence", { channel, limit: 300, after: next });
    for (const { user, info } of page.members) if (info) found.set(user, info); // without a name: only listens
    if (!(next = page.next)) break;
  }
  present = found;
  showPresent();
}

function come({ user, info: name }) {
  if (!name || present.get(user) === name) return;
  present.set(user, name);
  showPresent();
  if (name !== visit.name) showLine("event", `${name} entered`);
}

function go({ user, info: name }) {
  if (!present.delete(user)) return;
  showPresent();
  showLine("event", `${name} left`);
}

function showSaid({ name, text, at }) {
  const time = new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  showLine(name === visit.name ? "own" : "other", text, `${name}, ${time}`);
}

function showRoom() {
  element("messages").replaceChildren();
  element("room-name").textContent = visit.room;
  element("door").hidden = true;
  element("room").hidden = false;
  element("text").focus();
}

function showDoor() {
  visit = chat = null;
  delete sessionStorage.visit;
  element("room").hidden = true;
  element("door").hidden = false;
  element("name").focus();
}

function showPresent() {
  const names = [...present.values()].sort();
  element("present").replaceChildren(...names.map((name) => item(name === visit.name ? "own" : "", name)));
}

function showLine(kind, text, about = "") {
  const line = item(kind, "");
  for (const [tag, content] of [["small", about], ["p", text]]) {
    const part = document.createElement(tag);
    part.textContent = content;
    line.append(part);
  }
  element("messages").append(line);
  element("messages").scrollTop = element("messages").scrollHeight;
}

function item(className, text) {
  const entry = document.createElement("li");
  entry.className = className;
  entry.textContent = text;
  return entry;
}

// -- the chart -------------------------------------------------------------------------------------------------

function showLoad({ load, cores }) {
  element("load").textContent = load.toFixed(2);
  element("cores").textContent = `tasks at work, on ${cores} ${cores === 1 ? "core" : "cores"}`;
  chart.add(load);
}

// -- the forms -------------------------------------------------------------------------------------------------

onSubmit("door", async (fields) => {
  await enter(fields);
  attempt(settle);
});

onSubmit("speak", async (fields) => {
  await socket.call("say", fields);
  element("speak").reset();
});

onSubmit("leave", async () => {
  await socket.call("leave");
  showDoor();
});

/** Run *action* on what the form holds. What is allowed is known to the server alone, and its errors are shown. */
function onSubmit(id, action) {
  const form = element(id);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await action(Object.fromEntries(new FormData(form)));
      showErrors(form, {});
    } catch (error) {
      showErrors(form, error);
    }
  });
}

/** Show beside each field what is wrong with it, and below the form what is wrong with no field of it. */
function showErrors(form, { message = "", errors = {} }) {
  const inputs = [...form.querySelectorAll("input")];
  for (const input of inputs) {
    const why = errors[input.name] ?? "";
    input.setAttribute("aria-invalid", why !== "");
    element(`${input.id}-error`).textContent = why;
  }
  const isShown = inputs.some((input) => input.name in errors);
  form.querySelector(".failure").textContent = isShown ? "" : message;
  inputs.find((input) => input.name in errors)?.focus();
}
