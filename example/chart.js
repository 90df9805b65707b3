// A line that moves to the left as values come, drawn into an <svg>.

const SHOWN = 60; // values
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [480, 200, 34, 8, 10, 22];

export class Chart {
  #values = [];
  #svg;

  constructor(svg) {
    this.#svg = svg;
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  }

  /** Put *value*, 0 or more, at the right end. */
  add(value) {
    this.#values = [...this.#values, value].slice(-SHOWN);
    this.#draw();
  }

  clear() {
    this.#values = [];
  }

  #draw() {
    const highest = 2 ** Math.ceil(Math.log2(Math.max(...this.#values, 0.25))); // a power of two halves well
    const y = (value) => HEIGHT - BOTTOM - (value / highest) * (HEIGHT - BOTTOM - TOP);
    const x = (age) => WIDTH - RIGHT - (age / (SHOWN - 1)) * (WIDTH - RIGHT - LEFT);
    const points = this.#values.map((value, at) => [x(this.#values.length - 1 - at), y(value)]);
    const [first, last] = [points[0], points.at(-1)];

    this.#svg.replaceChildren(
      ...[0, highest / 2, highest].flatMap((value) => [
        shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
        shape("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value),
      ]),
      shape("text", { x: LEFT, y: HEIGHT - 4 }, "a minute ago"),
      shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, "now"),
      shape("polygon", { points: [[first[0], y(0)], ...points, [last[0], y(0)]].join(" ") }),
      shape("polyline", { points: points.join(" ") }),
      shape("circle", { cx: last[0], cy: last[1], r: 4 }),
    );
  }
}

function shape(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}
