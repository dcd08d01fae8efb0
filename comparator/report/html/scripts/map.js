// The map: rows are layers, columns are taps, both in the order of execution. Other columns are in axes.js.

const HEAD = 130;
const SIDE = 64;

/** Puts families into rows and columns: { rows: [{ key, text }], columns: [text], cells: Map("row:column" → [family]) }. */
function layOut(families) {
  const columns = [];
  const rows = new Map();
  const placed = [];
  let layered = false;
  let row = null;
  let column = -1;
  for (let family = 0; family < families.count; family += 1) {
    const layer = families.layer(family);
    layered ||= layer !== null;
    const key = layer ?? (layered ? "end" : "start");
    if (key !== row) column = -1;
    row = key;
    if (!rows.has(key)) rows.set(key, rows.size);
    const tap = families.tapOf(family);
    let at = columns.indexOf(tap);
    if (at < 0) {
      at = column < 0 ? (key === "start" ? 0 : columns.length) : column + 1;
      columns.splice(at, 0, tap);
    }
    column = at;
    placed.push([family, key, tap]);
  }
  const rank = (key) => (key === "start" ? -1 : key === "end" ? Infinity : key);
  const keys = [...rows.keys()].sort((a, b) => rank(a) - rank(b));
  const rowOfKey = new Map(keys.map((key, at) => [key, at]));
  const columnOf = new Map(columns.map((tap, at) => [tap, at]));
  const cells = new Map();
  for (const [family, key, tap] of placed) {
    const cell = `${rowOfKey.get(key)}:${columnOf.get(tap)}`;
    if (!cells.has(cell)) cells.set(cell, []);
    cells.get(cell).push(family);
  }
  const text = (key) => (key === "start" ? "before" : key === "end" ? "after" : `layer ${key}`);
  return { rows: keys.map(text), columns, cells };
}

/** What a cell shows: { category, times, judged, flipped, families, row }; of all steps, or of one. */
function cellsOf(layout, families, rows, step) {
  const shown = new Map();
  const byFamily = step === null ? null : worstOfStep(rows, step);
  for (const [place, members] of layout.cells) {
    let cell = null;
    for (const family of members) {
      const found = byFamily === null ? wholeFamily(families, family) : byFamily.get(family);
      if (found !== undefined) cell = cell === null ? found : worse(cell, found);
    }
    if (cell !== null) shown.set(place, cell);
  }
  return shown;
}

function wholeFamily(families, family) {
  return {
    family,
    step: null,
    category: families.category(family),
    times: families.columns.times[family],
    judged: families.judged(family),
    flipped: families.columns.flipped[family] === 1,
  };
}

function worstOfStep(rows, step) {
  const found = new Map();
  for (let row = 0; row < rows.count; row += 1) {
    if (rows.columns.step[row] !== step) continue;
    const cell = cellOfRow(rows, row);
    const known = found.get(cell.family);
    found.set(cell.family, known === undefined ? cell : worse(known, cell));
  }
  return found;
}

function cellOfRow(rows, row) {
  const family = rows.columns.family[row];
  return {
    ...wholeFamily(rows.families, family),
    step: rows.columns.step[row],
    category: rows.columns.category[row],
    times: rows.columns.times[row],
  };
}

function worse(a, b) {
  if (a.category !== b.category) return a.category > b.category ? a : b;
  return (a.times ?? 0) >= (b.times ?? 0) ? a : b;
}

/** A map on a canvas, which a mouse and the arrow keys move over. */
class HeatMap {
  constructor({ rows, columns, shown, families, matching, onopen }) {
    Object.assign(this, { rows, columns, shown, families, matching, onopen });
    this.at = null;
    this.canvas = make("canvas", { id: "map", tabindex: "0", role: "img" });
    this.said = make("p", { id: "map-cell", "aria-live": "polite" }, this.idle());
    this.element = make("div", { class: "map" }, make("div", { class: "scroll" }, this.canvas), this.said);
    this.canvas.setAttribute("aria-label", `Map of ${counted(rows.length, "row")} and ${counted(columns.length, "column")}; arrow keys move, Enter opens`);
    this.canvas.addEventListener("mousemove", (event) => this.point(this.placeOf(event)));
    this.canvas.addEventListener("mouseleave", () => this.point(null));
    this.canvas.addEventListener("click", (event) => this.open(this.placeOf(event)));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  idle() {
    return "Point at a cell, or move with the arrow keys.";
  }

  /** Measures and draws; to be called when the element is in the page, and again when its width or the theme changes. */
  draw() {
    const width = this.element.clientWidth || 800;
    this.cellWidth = Math.max(12, Math.min(56, Math.floor((width - SIDE - 4) / Math.max(1, this.columns.length))));
    this.cellHeight = Math.max(2, Math.min(22, Math.floor(16000 / Math.max(1, this.rows.length))));
    if (this.rows.length > 60) this.cellHeight = Math.min(this.cellHeight, 12);
    const right = Math.min(HEAD, 70);
    const size = [SIDE + this.cellWidth * this.columns.length + right, HEAD + this.cellHeight * this.rows.length + 2];
    const ratio = size[0] * size[1] * 4 > 3e7 ? 1 : window.devicePixelRatio || 1;
    this.canvas.width = size[0] * ratio;
    this.canvas.height = size[1] * ratio;
    this.canvas.style.width = `${size[0]}px`;
    this.canvas.style.height = `${size[1]}px`;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    this.context = context;
    this.dark = isDark();
    this.palette = { ink: themed("ink"), faint: themed("faint"), outline: themed("introduced"), flip: themed("flip"), paper: themed("paper") };
    context.font = "11px system-ui, sans-serif";
    this.drawHeads();
    for (const [place, cell] of this.shown) this.drawCell(place, cell);
  }

  drawHeads() {
    const { context } = this;
    context.fillStyle = this.palette.ink;
    context.textBaseline = "middle";
    const every = Math.max(1, Math.ceil(12 / this.cellHeight));
    this.rows.forEach((text, at) => {
      if (at % every === 0) context.fillText(text, 2, HEAD + (at + 0.5) * this.cellHeight, SIDE - 6);
    });
    this.columns.forEach((text, at) => {
      context.save();
      context.translate(SIDE + (at + 0.5) * this.cellWidth, HEAD - 6);
      context.rotate(-Math.PI / 3.2);
      context.fillText(text.length > 24 ? `${text.slice(0, 23)}…` : text, 0, 0);
      context.restore();
    });
  }

  box(place) {
    const [row, column] = place.split(":").map(Number);
    const gap = this.cellHeight > 5 ? 1 : 0;
    return [SIDE + column * this.cellWidth, HEAD + row * this.cellHeight, this.cellWidth - 1, this.cellHeight - gap];
  }

  drawCell(place, cell) {
    const { context } = this;
    const [x, y, width, height] = this.box(place);
    const dimmed = this.matching !== null && !this.matching.has(cell.family) ? 0.18 : cell.together ? 0.4 : 1;
    context.save();
    context.globalAlpha = dimmed;
    const name = this.families.summary.categories[cell.category];
    if (name === "skipped") {
      hatch(context, x, y, width, height, this.palette.faint);
    } else {
      context.globalAlpha = dimmed * (cell.judged === "inherited-from" ? 0.5 : 1);
      context.fillStyle = cell.times === null && cell.category >= 2 ? scaleColour(1, this.dark) : timesColour(cell.times, this.dark);
      context.fillRect(x, y, width, height);
      context.globalAlpha = dimmed;
      if (name === "errored") cross(context, x, y, width, height, this.palette.outline);
    }
    if (cell.judged === "introduced-here") {
      context.strokeStyle = this.palette.outline;
      context.lineWidth = height > 5 ? 3 : 1;
      context.strokeRect(x + 1, y + 1, width - 2, height - 2);
    }
    if (cell.flipped) flag(context, x + width, y, Math.min(8, height), this.palette.flip);
    context.restore();
  }

  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - SIDE) / this.cellWidth);
    const row = Math.floor((event.clientY - box.top - HEAD) / this.cellHeight);
    const place = `${row}:${column}`;
    return this.shown.has(place) ? place : null;
  }

  point(place) {
    this.canvas.style.cursor = place === null ? "default" : "pointer";
    this.said.textContent = place === null ? this.idle() : this.describe(this.shown.get(place));
  }

  describe(cell) {
    const step = cell.step === null || cell.step < 0 ? "" : ` step=${cell.step}`;
    const times = cell.times === null ? "" : `, ${number(cell.times)} times the tolerance`;
    const source = this.families.text("source", cell.family);
    const judged = { "introduced-here": ", introduced here", "inherited-from": `, inherited from ${source}` }[cell.judged] ?? "";
    const flipped = cell.flipped ? ", tokens chose other experts" : "";
    const together = cell.together ? ", all ranks together" : "";
    return `${this.families.label(cell.family)}${step}: ${this.families.summary.categories[cell.category]}${times}${judged}${flipped}${together}`;
  }

  open(place) {
    if (place !== null) this.onopen(this.shown.get(place));
  }

  key(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Enter" && this.at !== null) return this.open(this.at);
    if (!(event.key in moves)) return undefined;
    event.preventDefault();
    const next = this.next(moves[event.key]);
    if (next !== null) {
      const before = this.at;
      this.at = next;
      if (before !== null) this.draw();
      const [x, y, width, height] = this.box(next);
      this.context.strokeStyle = this.palette.ink;
      this.context.lineWidth = 2;
      this.context.strokeRect(x - 1, y - 1, width + 2, height + 2);
      this.point(next);
    }
    return undefined;
  }

  /** The next cell in a direction, from where the keys are; the first cell at the start. */
  next([down, right]) {
    if (this.at === null) return this.shown.keys().next().value ?? null;
    let [row, column] = this.at.split(":").map(Number);
    for (;;) {
      row += down;
      column += right;
      if (row < 0 || column < 0 || row >= this.rows.length || column >= this.columns.length) return null;
      if (this.shown.has(`${row}:${column}`)) return `${row}:${column}`;
    }
  }
}

function hatch(context, x, y, width, height, colour) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.beginPath();
  for (let at = -height; at < width; at += 5) {
    context.moveTo(x + at, y + height);
    context.lineTo(x + at + height, y);
  }
  context.stroke();
  context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
  context.restore();
}

function cross(context, x, y, width, height, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 2;
  context.beginPath();
  context.moveTo(x + 3, y + 3);
  context.lineTo(x + width - 3, y + height - 3);
  context.moveTo(x + width - 3, y + 3);
  context.lineTo(x + 3, y + height - 3);
  context.stroke();
}

function flag(context, x, y, size, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x - size, y);
  context.lineTo(x, y + size);
  context.fill();
}

/** What the colours and marks mean. */
function legend() {
  const canvas = make("canvas", { class: "legend", role: "img", width: "760", height: "40" });
  canvas.setAttribute(
    "aria-label",
    "Colours: error from a tenth to a hundred times the tolerance. Outlined: error is introduced here. Pale: inherited. " +
      "Corner: tokens chose other experts. Hatched: skipped or missing. Crossed: could not be compared.",
  );
  const context = canvas.getContext("2d");
  const dark = isDark();
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  for (let at = 0; at < 160; at += 1) {
    context.fillStyle = scaleColour(at / 159, dark);
    context.fillRect(2 + at, 4, 1, 14);
  }
  context.fillStyle = themed("ink");
  for (const [text, at] of [["0.1", 2], ["1", 55], ["10", 108], ["100×", 148]]) context.fillText(text, at, 30);
  let x = 190;
  const sign = (text, paint) => {
    paint(x, 4, 22, 14);
    context.fillStyle = themed("ink");
    context.fillText(text, x + 28, 12);
    x += 46 + context.measureText(text).width;
  };
  const fill = (share, alpha = 1) => (left, top, width, height) => {
    context.globalAlpha = alpha;
    context.fillStyle = scaleColour(share, dark);
    context.fillRect(left, top, width, height);
    context.globalAlpha = 1;
  };
  sign("introduced", (left, top, width, height) => {
    fill(0.8)(left, top, width, height);
    context.strokeStyle = themed("introduced");
    context.lineWidth = 3;
    context.strokeRect(left + 1, top + 1, width - 2, height - 2);
  });
  sign("inherited", fill(0.8, 0.5));
  sign("experts flipped", (left, top, width, height) => {
    fill(0.2)(left, top, width, height);
    flag(context, left + width, top, 8, themed("flip"));
  });
  sign("skipped", (left, top, width, height) => hatch(context, left, top, width, height, themed("faint")));
  sign("not comparable", (left, top, width, height) => {
    fill(1)(left, top, width, height);
    cross(context, left, top, width, height, themed("introduced"));
  });
  return canvas;
}
