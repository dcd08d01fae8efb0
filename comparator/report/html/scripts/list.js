// The list of findings: what the search finds, in the order that a click on a heading asks for.

const PAGE_OF_LIST = 100;

const LISTED = {
  tensor: { text: "Tensor", value: (rows, row) => rows.label(row), order: (rows, row) => rows.order(row) },
  category: { text: "Verdict", value: (rows, row) => rows.category(row), order: (rows, row) => -rows.columns.category[row] },
  times: { text: "× tolerance", value: (rows, row) => shown(rows.columns.times[row]), order: descending("times") },
  rel: { text: "rel", value: (rows, row) => shown(rows.columns.rel[row]), order: descending("rel") },
  max_abs: { text: "max_abs", value: (rows, row) => shown(rows.columns.max_abs[row]), order: descending("max_abs") },
  origin: { text: "Error", value: (rows, row) => origin(rows.families, rows.columns.family[row]), order: (rows, row) => -rows.families.columns.judged[rows.columns.family[row]] },
};

function shown(value) {
  return value === null ? "" : number(value);
}

function descending(column) {
  return (rows, row) => -(rows.columns[column][row] ?? -1);
}

/** Where the error of a family comes from, in words. */
function origin(families, family) {
  const judged = families.judged(family);
  const source = families.text("source", family);
  return judged === "inherited-from" ? `inherited from ${source}` : judged.replaceAll("-", " ");
}

/** The list; `found` are rows, `sort` is a key of LISTED. */
function listOf(rows, found, sort, onsort) {
  const order = LISTED[sort].order;
  const keys = new Map(found.map((row) => [row, order(rows, row)]));
  const sorted = sort === "tensor" ? found : [...found].sort((a, b) => keys.get(a) - keys.get(b) || a - b);
  const heads = Object.entries(LISTED).map(([key, { text }]) =>
    make(
      "th",
      { scope: "col", "aria-sort": key === sort ? (key === "tensor" ? "ascending" : "descending") : "none" },
      make("button", { type: "button", class: "sort", onclick: () => onsort(key) }, text),
    ),
  );
  const body = make("tbody");
  const more = make("button", { type: "button", id: "more", onclick: () => append() }, "Show more");
  let at = 0;
  const append = () => {
    for (const row of sorted.slice(at, at + PAGE_OF_LIST)) body.append(listRow(rows, row));
    at = Math.min(sorted.length, at + PAGE_OF_LIST);
    more.hidden = at >= sorted.length;
    more.textContent = `Show more (${sorted.length - at} left)`;
  };
  append();
  return make(
    "div",
    { class: "list" },
    make("div", { class: "scroll" }, make("table", { id: "list" }, make("thead", {}, make("tr", {}, heads)), body)),
    more,
  );
}

function listRow(rows, row) {
  const cells = Object.entries(LISTED).map(([key, { value }]) => {
    const text = value(rows, row);
    const link = key === "tensor" ? make("a", { href: `#${addressOf({ tensor: text })}` }, text) : text;
    return make("td", { class: key }, link);
  });
  return make("tr", { class: rows.category(row) }, cells);
}
