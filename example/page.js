// The page: a door, a room behind it, a chart beside it. What people write reaches the page as textContent only.

import { Chart } from "./chart.js";
import { Socket } from "./socket.js";

const FRAMES_SHOWN = 12;
const KEPT = 200; // messages that the server keeps of a room

const element = (id) => document.getElementById(id);
const chart = new Chart(element("chart"));
const socket = new Socket(`${location.origin.replace("http", "ws")}/ws`);

let visit = null; // {room, name} while in a room, also while disconnected: it is entered again afterwards
let position = null; // in what is said in the room: all before is on the page
let present = new Set();

// -- the connection --------------------------------------------------------------------------------------------

socket.addEventListener("up", async () => {
  showStatus("up", "Connected");
  try {
    await socket.call("subscribe", { channel: "load" });
    if (!visit) return;
    await enter(visit);
    await listen();
  } catch (error) {
    if (!error.code) return; // the connection is lost again, and all this is tried anew when it is back
    showDoor();
    showErrors(element("door"), error);
  }
});

socket.addEventListener("down", ({ detail }) => {
  showStatus("down", detail.comesBack ? "Disconnected, trying again…" : "The server sent us away");
});

socket.addEventListener("message", ({ detail: message }) => {
  const { channel, event, data } = message;
  if (channel === "load") showLoad(data);
  else if (channel === `door:${visit?.room}`) atDoor[event](data);
  else if (channel === `chat:${visit?.room}`) showSaid(message);
});

socket.addEventListener("frame", ({ detail: { sent, frame, channel } }) => {
  if (channel === "load") return; // one a second would push everything else out
  const frames = element("frames");
  frames.append(item(sent ? "sent" : "received", frame));
  while (frames.children.length > FRAMES_SHOWN) frames.firstElementChild.remove();
});

function showStatus(state, text) {
  element("status").className = state;
  element("status").textContent = text;
}

// -- the room --------------------------------------------------------------------------------------------------

const atDoor = {
  entered: (name) => {
    present.add(name);
    showPresent();
    showLine("event", `${name} came in`);
  },
  left: (name) => {
    present.delete(name);
    showPresent();
    showLine("event", `${name} left`);
  },
};

async function enter(wanted) {
  const [accepted, names] = await socket.call("enter", wanted);
  visit = accepted;
  present = new Set(names);
  showPresent();
}

/** Show what was said in the room and is not on the page yet, and then what comes: no hole, no double. */
async function listen() {
  const channel = `chat:${visit.room}`;
  if (!position) {
    const kept = await socket.call("history", { channel, limit: KEPT, reverse: true });
    kept.messages.reverse().forEach(showSaid);
    position = kept.position;
  }
  const { recovered, messages } = await socket.call("subscribe", { channel, position });
  messages.forEach(showSaid);
  if (recovered) return;
  showLine("event", "You are back. Some of what was said meanwhile is missing here.");
  await socket.call("unsubscribe", { channel }); // else what comes now would also be in what is kept
  position = null;
  await listen();
}

function showSaid({ data: { name, text, at }, position: reached }) {
  const time = new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  showLine(name === visit.name ? "own" : "other", text, `${name}, ${time}`);
  position = reached;
}

function showRoom() {
  element("messages").replaceChildren();
  element("room-name").textContent = visit.room;
  element("door").hidden = true;
  element("room").hidden = false;
  element("text").focus();
}

function showDoor() {
  visit = position = null;
  element("room").hidden = true;
  element("door").hidden = false;
  element("name").focus();
}

function showPresent() {
  const names = [...present].sort();
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
  showRoom();
  await listen();
});

onSubmit("speak", async (fields) => {
  await socket.call("say", fields);
  element("speak").reset();
});

onSubmit("leave", async () => {
  await socket.call("leave");
  await socket.call("unsubscribe", { channel: `chat:${visit.room}` });
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
