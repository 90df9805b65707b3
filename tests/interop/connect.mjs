// A connection of vscode-ws-jsonrpc, the frames that it has sent, and its end.

import { ConsoleLogger, createWebSocketConnection, toSocket } from "vscode-ws-jsonrpc";
import { WebSocket } from "ws";

export async function connect(url, ...protocols) {
  const webSocket = new WebSocket(url, protocols);
  await new Promise((resolve, reject) => webSocket.once("open", resolve).once("error", reject));
  const socket = toSocket(webSocket);
  const sent = [];
  const send = (text) => {
    sent.push(JSON.parse(text));
    socket.send(text);
  };
  const connection = createWebSocketConnection({ ...socket, send }, new ConsoleLogger());
  connection.listen();
  return { connection, sent, close: () => webSocket.close() };
}
