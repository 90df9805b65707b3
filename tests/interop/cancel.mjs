// vscode-ws-jsonrpc takes a call back: node cancel.mjs <url>

import { CancellationTokenSource } from "vscode-jsonrpc/node.js";
import { connect } from "./connect.mjs";
import { outcome, report } from "./report.mjs";

const [url] = process.argv.slice(2);

const { connection, sent, close } = await connect(url, "jsonrpc-2.0");
const source = new CancellationTokenSource();
const waiting = connection.sendRequest("wait", source.token);
await outcome(connection.sendRequest("begun"));
source.cancel();
await outcome(waiting);
report("cancel", sent.find((frame) => frame.method === "$/cancelRequest"));
await outcome(connection.sendRequest("cancelled"));
await outcome(connection.sendRequest("sum", [1, 2, 4]));
report("params", sent.at(-1).params);
close();
