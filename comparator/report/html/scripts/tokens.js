// Tokens: a strip for each sequence, coloured by the worst difference at each position. A click shows the map of a token.

const STRIPS_AT_ONCE = 10;
const ABSENT = -99;

/** "sequence:position" of the first token of the strips. */
function firstToken(tokens) {
  return `${tokens.sequences[0].sequence}:${tokens.sequences[0].positions[0]}`;
}

function tokenName(token) {
  const [sequence, position] = token.split(":");
  return `sequence ${sequence}, position ${position}`;
}

async function tokensView() {
  const tokens = await block("tokens");
  if (!tokens?.sequences.length) {
    return [make("p", { class: "missing" }, "The report has no single tokens: the runs have no token layouts, or the page was made without the runs.")];
  }
  const parts = [legend()];
  const strips = make("div", { id: "strips" });
  const more = make("button", { type: "button", onclick: () => append() }, "Show more");
  let at = 0;
  const append = () => {
    for (const strip of tokens.sequences.slice(at, at + STRIPS_AT_ONCE)) strips.append(...stripOf(strip, tokens));
    at += STRIPS_AT_ONCE;
    more.hidden = at >= tokens.sequences.length;
  };
  append();
  parts.push(strips, more);
  if (tokens.sequences_left_out) parts.push(make("p", { class: "missing" }, `${tokens.sequences_left_out} more sequences are not in the page.`));
  return parts;
}

function stripOf(strip, tokens) {
  const dark = isDark();
  const cells = strip.positions.map((position, at) => {
    const id = strip.ids[at];
    const text = strip.texts[at] ?? (id === undefined || id < 0 ? "·" : String(id));
    const said = `sequence ${strip.sequence}, position ${position}${id === undefined ? "" : `, token ${id}`}: ${number(strip.worst[at])} times the tolerance at ${tokens.taps[strip.tap[at]]}`;
    const cell = make("a", { class: "token", title: said, "aria-label": said, href: `#${addressOf({ token: `${strip.sequence}:${position}` })}` }, visible(text));
    const share = (Math.log10(Math.max(strip.worst[at], 1e-3)) + 1) / 3;
    cell.style.background = scaleColour(share, dark);
    cell.style.color = share > 0.55 === dark ? "#10141b" : "#f6f8fb";
    if (!dark && share <= 0.55) cell.style.color = "#10141b";
    if (position === strip.parts_at) cell.classList.add("parts");
    return cell;
  });
  const cut = strip.tokens > strip.positions.length ? `, of which the page has the first ${strip.positions.length}` : "";
  const parted = strip.parts_at === null ? "" : `; the texts part at position ${strip.parts_at}`;
  const parts = [heading(`Sequence ${strip.sequence}: ${counted(strip.tokens, "token")}${cut}${parted}`), make("p", { class: "strip" }, cells)];
  if (strip.chosen.length) parts.push(chosenTable(strip));
  return parts;
}

/** A token as text that shows its spaces and line breaks. */
function visible(text) {
  return text.replaceAll("\n", "⏎").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "∅";
}

/** What the logits of both sides choose: rows where they part, else those with the largest change. */
function chosenTable(strip) {
  const apart = (row) => Math.abs(row[3] - row[4]);
  const worst = [...strip.chosen].sort((a, b) => (b[1] !== b[2]) - (a[1] !== a[2]) || apart(b) - apart(a)).slice(0, 20);
  const rows = worst.map(([position, baseline, target, left, right]) =>
    make("tr", { class: baseline === target ? "" : "failed" }, [position, baseline, target, number(left), number(right)].map((cell) => make("td", {}, cell))),
  );
  return make("details", { open: worst.some((row) => row[1] !== row[2]) }, make("summary", {}, `Next tokens: ${counted(strip.chosen.filter((row) => row[1] !== row[2]).length, "choice")} differ of ${strip.chosen.length}`), tableOf({ class: "chosen numbers" }, ["position", "baseline chooses", "target chooses", "log probability, baseline", "of the same, target"], rows));
}

/** Where a token is in the grid; -1 where the page does not have it. */
function columnOfToken(tokens, token) {
  let at = 0;
  for (const strip of tokens.sequences) {
    for (const position of strip.positions) {
      if (`${strip.sequence}:${position}` === token) return at;
      at += 1;
    }
  }
  return -1;
}

/** Per family the line of the grid. */
function linesOfFamilies(families, tokens) {
  return new Map(tokens.taps.map((label, line) => [families.find(label), line]).filter(([family]) => family !== undefined));
}

/** The map of one token: each cell has the error of this token at this tap. */
function cellsOfToken(layout, families, tokens, token) {
  const column = columnOfToken(tokens, token);
  const lines = linesOfFamilies(families, tokens);
  const shown = new Map();
  for (const [place, members] of layout.cells) {
    for (const family of members) {
      const level = tokens.grid[lines.get(family)]?.[column] ?? ABSENT;
      if (level !== ABSENT) shown.set(place, cellOfLevel(families, family, level));
    }
  }
  return shown;
}
