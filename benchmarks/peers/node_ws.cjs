// Node's ws: JSON.parse, a check of the types by hand, JSON.stringify; compression is off, as it is by default.
"use strict";
const http = require("node:http");
const { WebSocketServer } = require("ws");

const subscribers = new Set();

function answer(socket, call) {
  if (typeof call.payload?.message !== "string") throw new TypeError("message is no string");
  const reply = () => socket.send(JSON.stringify({ id: call.id, method: call.method, response: { message: call.payload.message } }));
  if (call.method === "slow") setTimeout(reply, 50);
  else reply();
}

function fanout(socket, call) {
  if (call.method === "publish") {
    const text = JSON.stringify(call.payload);
    for (const subscriber of subscribers) subscriber.send(text);
  } else subscribers.add(socket);
  socket.send(JSON.stringify({ id: call.id }));
}

const server = http.createServer();
new WebSocketServer({ server }).on("connection", (socket, request) => {
  const handle = request.url === "/" ? answer : fanout;
  socket.on("message", (data) => handle(socket, JSON.parse(data)));
});
server.listen({ fd: Number(process.argv[2]) });
