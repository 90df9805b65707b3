// What the scripts share: they print what their client learned, one JSON object per line.

export function report(what, value) {
  console.log(JSON.stringify({ [what]: value ?? null }));
}

/** Report how the call ended: with its result, or with its error's code and message. */
export async function outcome(call) {
  try {
    report("result", await call);
  } catch ({ code, message }) {
    report("error", { code, message });
  }
}

/** Returns a function that waits for the next of the values that *subscribe* hands on. */
export function inbox(subscribe) {
  const come = [];
  const wanted = [];
  subscribe((value) => (wanted.length ? wanted.shift()(value) : come.push(value)));
  return async () => (come.length ? come.shift() : new Promise((resolve) => wanted.push(resolve)));
}
