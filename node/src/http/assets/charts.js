// Curves: lines, dots and marks on plain axes, drawn at the size they are seen at. A cursor reads values, by pointer or by keys.

import { drawn, element } from "./words.js";

const LEFT = 46;
const RIGHT = 14;
const TOP = 12;
const BOTTOM = 26;

export class Chart {
  #node;
  #label;
  #shown = null;
  #at = null;

  // `label` says what is drawn, in words.
  constructor(id, label) {
    this.#node = document.getElementById(id);
    this.#label = label;
    new ResizeObserver(() => this.#draw()).observe(this.#node);
    this.#node.addEventListener("pointermove", (event) => this.#point(event));
    this.#node.addEventListener("pointerleave", () => this.#read(null));
    this.#node.addEventListener("blur", () => this.#read(null));
    this.#node.addEventListener("keydown", (event) => this.#key(event));
  }

  // What to show: { empty } in words, or { series, marks, ticks, x, y, read }, where a series is { points: [[x, y]], tone, kind }
  // and the last one is what the cursor reads.
  show(shown) {
    this.#shown = shown;
    this.#draw();
  }

  #draw() {
    const { width, height } = this.#node.getBoundingClientRect();
    const shown = this.#shown;
    if (!shown || width < 40) return;
    const node = this.#node;
    if (shown.empty) {
      ["tabindex", "role", "aria-label", "aria-valuetext", "aria-valuenow"].forEach((name) => node.removeAttribute(name));
      node.replaceChildren(element("p", { class: "empty" }, shown.empty));
      return;
    }
    const place = this.#places(shown, width, height);
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    axes(svg, shown, place, width, height);
    for (const mark of shown.marks ?? []) {
      const y = place.y(mark.y);
      svg.append(drawn("line", { class: "mark", "data-tone": mark.tone, x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
    }
    for (const one of shown.series) trace(svg, one, place, height);
    node.replaceChildren(svg);
    node.setAttribute("tabindex", "0");
    node.setAttribute("role", "slider");
    node.setAttribute("aria-label", `${this.#label}; arrow keys read its points`);
    this.#read(this.#at);
  }

  #places({ series, marks = [] }, width, height) {
    const points = series.flatMap((one) => one.points);
    const xs = points.map(([x]) => x);
    const ys = points.map(([, y]) => y).concat(marks.map((mark) => mark.y));
    const [left, right] = [Math.min(...xs), Math.max(...xs)];
    const [least, most] = [Math.min(...ys), Math.max(...ys)];
    const air = (most - least || Math.abs(most) || 1) * 0.08;
    const [low, high] = [least - air, most + air];
    return {
      low,
      high,
      left,
      right,
      x: (value) => LEFT + ((value - left) / (right - left || 1)) * (width - LEFT - RIGHT),
      y: (value) => TOP + ((high - value) / (high - low)) * (height - TOP - BOTTOM),
    };
  }

  #main() {
    return this.#shown?.series?.at(-1)?.points ?? [];
  }

  #point(event) {
    const points = this.#main();
    if (points.length === 0) return;
    const box = this.#node.getBoundingClientRect();
    const place = this.#places(this.#shown, box.width, box.height);
    const away = (index) => Math.abs(place.x(points[index][0]) - (event.clientX - box.left));
    let nearest = 0;
    for (let index = 1; index < points.length; index += 1) if (away(index) < away(nearest)) nearest = index;
    this.#read(nearest);
  }

  #key(event) {
    const last = this.#main().length - 1;
    const step = Math.max(1, Math.round(last / 20));
    const from = this.#at ?? last;
    const moves = { ArrowLeft: from - 1, ArrowRight: from + 1, ArrowDown: from - 1, ArrowUp: from + 1, PageDown: from - step, PageUp: from + step, Home: 0, End: last };
    if (event.key === "Escape") return this.#read(null);
    if (last < 0 || !(event.key in moves)) return;
    event.preventDefault();
    this.#read(Math.min(last, Math.max(0, moves[event.key])));
  }

  #read(at) {
    this.#at = at;
    this.#node.querySelectorAll(".readout, .cursor").forEach((old) => old.remove());
    const points = this.#main();
    const point = points[at ?? points.length - 1];
    if (!point) return;
    const words = this.#shown.read(point);
    this.#node.setAttribute("aria-valuemin", "1");
    this.#node.setAttribute("aria-valuemax", String(points.length));
    this.#node.setAttribute("aria-valuenow", String((at ?? points.length - 1) + 1));
    this.#node.setAttribute("aria-valuetext", words);
    if (at === null) return;
    const { width, height } = this.#node.getBoundingClientRect();
    const place = this.#places(this.#shown, width, height);
    const [x, y] = [place.x(point[0]), place.y(point[1])];
    const cursor = drawn("g", { class: "cursor" }, drawn("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: height - BOTTOM }), drawn("circle", { class: "point", cx: x, cy: y, r: 5 }));
    this.#node.querySelector("svg").append(cursor);
    const readout = element("p", { class: "readout", "aria-hidden": "true" }, words);
    this.#node.append(readout);
    if (x > width / 2) {
      readout.style.right = "auto";
      readout.style.left = `${LEFT}px`;
    }
  }
}

// Round numbers that divide a span into about so many parts, `least` apart or more.
function round(low, high, parts, least = 0) {
  const rough = Math.max((high - low) / parts, least);
  const power = 10 ** Math.floor(Math.log10(rough));
  const factors = least > 0 ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10];
  const step = factors.map((factor) => factor * power).find((step) => step >= rough * 0.999);
  const ticks = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) ticks.push(value);
  return { ticks, places: Math.max(0, Math.ceil(-Math.log10(step) - 1e-9) + (String(step / power).startsWith("2.5") ? 1 : 0)) };
}

function axes(svg, shown, place, width, height) {
  const rows = round(place.low, place.high, Math.max(3, Math.floor(height / 42)));
  for (const value of rows.ticks) {
    const y = place.y(value);
    svg.append(drawn("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
    svg.append(drawn("text", { class: "axis", x: LEFT - 8, y: y + 4, "text-anchor": "end" }, value.toFixed(rows.places)));
  }
  const all = shown.ticks ?? round(place.left, place.right || 1, Math.max(3, Math.floor(width / 80)), 1).ticks.map((value) => [value, String(Math.round(value))]);
  const every = Math.ceil(all.length / Math.max(2, Math.floor(width / 44)));
  all.filter((_, index) => index % every === 0).forEach(([value, text], index, ticks) => {
    const anchor = ticks.length > 1 && index === ticks.length - 1 && place.x(value) > width - RIGHT - 12 ? "end" : "middle";
    svg.append(drawn("text", { class: "axis", x: place.x(value) + (anchor === "end" ? 6 : 0), y: height - 6, "text-anchor": anchor }, text));
  });
}

function trace(svg, { points, tone, kind }, place, height) {
  const at = points.map(([x, y]) => [place.x(x).toFixed(1), place.y(y).toFixed(1)]);
  if (at.length === 0) return;
  const path = at.map(([x, y], index) => `${index === 0 ? "M" : "L"}${x} ${y}`).join("");
  if (kind === "area" && at.length > 1) {
    svg.append(drawn("path", { class: "area", d: `${path}L${at.at(-1)[0]} ${height - BOTTOM}L${at[0][0]} ${height - BOTTOM}Z` }));
  }
  if (kind !== "dots") svg.append(drawn("path", { class: "trace", "data-tone": tone, d: path }));
  if (kind === "dots" || kind === "steps" || at.length === 1) {
    for (const [x, y] of at) svg.append(drawn("circle", { class: "point", "data-tone": tone, cx: x, cy: y, r: kind === "dots" ? 3.5 : 5 }));
  }
}

// The drift of a noisy curve: each value with a share of those before it.
export function smooth(points) {
  const keep = points.length < 8 ? 0 : Math.min(0.92, 1 - 12 / points.length < 0 ? 0.6 : 1 - 12 / points.length);
  let [held, weight] = [0, 0];
  return points.map(([x, y]) => {
    held = held * keep + y * (1 - keep);
    weight = weight * keep + (1 - keep);
    return [x, held / weight];
  });
}
