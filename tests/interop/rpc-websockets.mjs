// rpc-websockets enters and speaks: node rpc-websockets.mjs <url>

import { Client } from "rpc-websockets";
import { inbox, outcome, report } from "./report.mjs";

const [url] = process.argv.slice(2);

async function connect() {
  const client = new Client(url, { reconnect: false });
  await new Promise((resolve, reject) => client.once("open", resolve).once("error", reject));
  return client;
}

const listener = await connect();
const message = inbox((take) => listener.on("rpc.message", take));
await outcome(listener.call("subscribe", { channel: "room:attic" }));

const ada = await connect();
await outcome(ada.call("enter", { room: "attic", name: "Ada" }));
report("message", await message());
await outcome(ada.call("say", ["by position"]));
report("message", await message());
await ada.notify("say", { text: "by a notification" });
report("message", await message());

await outcome(listener.call("enter", ["attic", "Ada"]));
await outcome(listener.call("say", { text: "" }));
await outcome(listener.call("nothing"));

await outcome(listener.call("unsubscribe", { channel: "room:attic" }));
await outcome(ada.call("leave"));
listener.close();
ada.close();
