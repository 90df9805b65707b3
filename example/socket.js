// A WebSocket that comes back, with calls that are promises.

const FIRST_WAIT = 500; // ms
const LONGEST_WAIT = 15_000; // ms

/**
 * Tells by events "up" and "down" whether it is connected, by "message" what a channel brings, by "notice" what else
 * the server says, and by "frame" all that goes over the wire.
 */
export class Socket extends EventTarget {
  #url;
  #socket;
  #failures = 0;
  #lastId = 0;
  #calls = new Map();

  constructor(url) {
    super();
    this.#url = url;
    this.#open();
  }

  /** Call a method of the server. Fails with an Error that has the *code* and *errors* of the server's answer. */
  call(method, payload = {}) {
    return new Promise((resolve, reject) => {
      if (this.#socket.readyState !== WebSocket.OPEN) throw new Error("Not connected");
      const id = ++this.#lastId;
      const frame = JSON.stringify({ id, method, payload });
      this.#calls.set(id, { resolve, reject });
      this.#socket.send(frame);
      this.#tell("frame", { sent: true, frame });
    });
  }

  /** Leave, and come back as after a lost connection. */
  restart() {
    this.#socket.close(4000);
  }

  #open() {
    this.#socket = new WebSocket(this.#url, "openapi-ws.v1");
    this.#socket.onopen = () => this.#tell("up");
    this.#socket.onmessage = ({ data }) => this.#receive(data);
    this.#socket.onclose = ({ code }) => this.#lost(code);
  }

  #receive(frame) {
    this.#failures = 0; // only now: a server may accept a connection just to close it
    const message = JSON.parse(frame);
    this.#tell("frame", { sent: false, frame, channel: message.channel });
    if (message.channel) this.#tell("message", message);
    else if (message.notice) this.#tell("notice", message);
    else if (this.#calls.has(message.id)) this.#answer(message);
  }

  #answer({ id, response, error }) {
    const { resolve, reject } = this.#calls.get(id);
    this.#calls.delete(id);
    if (error) reject(Object.assign(new Error(error.message), error));
    else resolve(response);
  }

  #lost(code) {
    for (const { reject } of this.#calls.values()) reject(new Error("Connection lost"));
    this.#calls.clear();
    const comesBack = code < 4500; // from there on a close code means: stay away
    this.#tell("down", { comesBack });
    if (!comesBack) return;
    // Full jitter: without it, all tabs would knock again at the same moment, and bring a busy server down.
    const longest = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#failures++);
    setTimeout(() => this.#open(), Math.random() * longest);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
