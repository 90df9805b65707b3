// vscode-ws-jsonrpc enters and speaks: node vscode-ws-jsonrpc.mjs <url>

import { connect } from "./connect.mjs";
import { inbox, outcome, report } from "./report.mjs";

const [url] = process.argv.slice(2);

const { connection, sent, close } = await connect(url);
const message = inbox((take) => connection.onNotification("rpc.message", take));
await outcome(connection.sendRequest("enter", { room: "attic", name: "Ada" }));
report("first id", sent[0].id);
await outcome(connection.sendRequest("subscribe", "room:cellar", "*"));

await outcome(connection.sendRequest("say", { text: "by name" }));
report("message", await message());
await connection.sendNotification("say", { text: "by a notification" });
report("message", await message());

await outcome(connection.sendRequest("say", { text: "" }));
await outcome(connection.sendRequest("nothing"));
await outcome(connection.sendRequest("leave"));
await outcome(connection.sendRequest("say", { text: "to nobody" }));
close();
