// Elements are made here and nowhere else. Text is set as text, never as markup: names, tokens and messages of a run may
// hold anything.

/** An element: `make("a", { href: "#x", class: "y", onclick: f }, "text", child)`. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== undefined && child !== null) element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/** A table of two columns from pairs of a label and what it says; empty ones are left out. */
function facts(pairs) {
  const list = make("dl", { class: "facts" });
  for (const [label, said] of pairs) {
    if (said === undefined || said === null || said === "") continue;
    list.append(make("dt", {}, label), make("dd", {}, said));
  }
  return list;
}

/** A table that scrolls by itself where the window is narrow: rows are lists of cells, or elements. */
function tableOf(attributes, head, rows) {
  const body = rows.map((row) => (row instanceof Node ? row : make("tr", {}, row.map((cell) => make("td", {}, cell)))));
  const table = make("table", attributes, make("thead", {}, make("tr", {}, head.map((text) => make("th", {}, text)))), make("tbody", {}, body));
  return make("div", { class: "scroll" }, table);
}

function heading(text) {
  return make("h2", {}, text);
}

/** A number for people, of four digits; what is not finite has no number in a report. */
function number(value) {
  if (value === undefined || value === null) return "not finite";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** Waits until the browser has drawn what is there. */
function drawn() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 0)));
}
