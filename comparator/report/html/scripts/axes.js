// Other columns of the map: steps, tokens of a sequence, ranks, experts. Each layout is { rows, columns, shown, note }.

const AXES = {
  "": "layers × taps",
  steps: "layers × steps",
  tokens: "layers × tokens",
  ranks: "layers × ranks",
  experts: "layers × experts",
};
const EXPERT_TAGS = ["expert", "expert_id", "expert_idx"];
const MOST_TOKEN_COLUMNS = 400;

/** The row of each family. */
function rowsOfFamilies(layout) {
  const found = new Map();
  for (const [place, members] of layout.cells) {
    for (const family of members) found.set(family, Number(place.split(":")[0]));
  }
  return found;
}

/** Puts a cell at its place, where no worse one is. */
function putWorst(shown, place, cell) {
  shown.set(place, shown.has(place) ? worse(shown.get(place), cell) : cell);
}

/** A cell with the error of a part of a tap; `level` is ten times the decimal logarithm of error over tolerance. */
function cellOfLevel(families, family, level) {
  const times = 10 ** (level / 10);
  return { ...wholeFamily(families, family), times, category: times > 1 ? families.category(family) : 0, judged: times > 1 ? families.judged(family) : "", flipped: false };
}

/** The map with steps as its columns: the worst tap of each layer in each step. */
function stepsLayout(layout, rows) {
  const rowOfFamily = rowsOfFamilies(layout);
  const columnOf = new Map(rows.steps.map((step, at) => [step, at]));
  const shown = new Map();
  for (let row = 0; row < rows.count; row += 1) {
    const column = columnOf.get(rows.columns.step[row]);
    if (column === undefined) continue;
    const cell = cellOfRow(rows, row);
    const place = `${rowOfFamily.get(cell.family)}:${column}`;
    putWorst(shown, place, cell);
  }
  return { rows: layout.rows, columns: rows.steps.map((step) => `step ${step}`), shown };
}

/** The map with the tokens of one sequence as its columns: the worst tap of each layer at each token. */
function tokensLayout(layout, families, tokens, token) {
  const sequence = (token ?? firstToken(tokens)).split(":")[0];
  let start = 0;
  const strip = tokens.sequences.find((one) => {
    if (String(one.sequence) === sequence) return true;
    start += one.positions.length;
    return false;
  }) ?? tokens.sequences[0];
  const lines = linesOfFamilies(families, tokens);
  const columns = strip.positions.slice(0, MOST_TOKEN_COLUMNS);
  const shown = new Map();
  for (const [place, members] of layout.cells) {
    const row = place.split(":")[0];
    for (const family of members) {
      columns.forEach((_, at) => {
        const level = tokens.grid[lines.get(family)]?.[start + at] ?? ABSENT;
        if (level === ABSENT) return;
        const cell = cellOfLevel(families, family, level);
        const key = `${row}:${at}`;
        putWorst(shown, key, cell);
      });
    }
  }
  return { rows: layout.rows, columns: columns.map((position, at) => strip.texts[at] ?? `token ${position}`), shown, note: `errors of sequence ${strip.sequence}` };
}

/** Per family the errors of its parts, by the number of the rank or expert. */
function sharesOf(families, shares) {
  const found = new Map();
  for (const { tap, numbers, levels } of shares) {
    const family = families.find(tap);
    if (family !== undefined) found.set(family, new Map(numbers.map((part, at) => [part, levels[at]])));
  }
  return found;
}

/** The map with the target's ranks as its columns: the worst tap that ranks split; in a layer without one, the worst of all. */
function ranksLayout(layout, rows, tokens, run) {
  const { families } = rows;
  const columns = run.ranks.target.map((row) => row.rank);
  const columnOf = new Map(columns.map((rank, at) => [rank, at]));
  const rowOfFamily = rowsOfFamilies(layout);
  const shares = sharesOf(families, tokens?.ranks ?? []);
  const shown = new Map();
  const together = new Map();
  for (const [family, held] of shares) {
    for (const [rank, level] of held) {
      if (columnOf.has(rank)) putWorst(shown, `${rowOfFamily.get(family)}:${columnOf.get(rank)}`, cellOfLevel(families, family, level));
    }
  }
  for (let row = 0; row < rows.count; row += 1) {
    const cell = { ...cellOfRow(rows, row), together: true };
    if (shares.has(cell.family)) continue;
    for (const rank of rows.ranks(row)) {
      if (columnOf.has(rank)) putWorst(together, `${rowOfFamily.get(cell.family)}:${columnOf.get(rank)}`, cell);
    }
  }
  for (const [place, cell] of together) if (!shown.has(place)) shown.set(place, cell);
  const note = "errors of what each rank of the target holds; pale: taps that ranks do not split, all ranks together";
  return { rows: layout.rows, columns: columns.map((rank) => `rank ${rank}`), shown, note };
}

/** The map with experts as its columns: the worst tap of a layer for the rows of each expert. */
function expertsLayout(layout, families, tokens) {
  const shares = sharesOf(families, tokens?.experts ?? []);
  for (let family = 0; family < families.count; family += 1) {
    const tag = families.tags(family).find(([key, value]) => EXPERT_TAGS.includes(key) && /^\d+$/.test(value));
    if (tag !== undefined) shares.set(family, new Map([[Number(tag[1]), null]]));
  }
  const columns = [...new Set([...shares.values()].flatMap((parts) => [...parts.keys()]))].sort((a, b) => a - b);
  const columnOf = new Map(columns.map((expert, at) => [expert, at]));
  const rowOfFamily = rowsOfFamilies(layout);
  const shown = new Map();
  for (const [family, parts] of shares) {
    for (const [expert, level] of parts) {
      const cell = level === null ? wholeFamily(families, family) : cellOfLevel(families, family, level);
      putWorst(shown, `${rowOfFamily.get(family)}:${columnOf.get(expert)}`, cell);
    }
  }
  const note = "median error of the tokens that chose an expert, at the worst tap behind the router";
  return { rows: layout.rows, columns: columns.map((expert) => `expert ${expert}`), shown, note };
}

/** What a state of the address asks for; null for layers × taps. `missing` says what the page does not have for it. */
async function layoutOfAxis(state, layout, rows) {
  const { families } = rows;
  if (state.axis === "steps") return stepsLayout(layout, rows);
  if (state.axis === "ranks") return ranksLayout(layout, rows, await block("tokens"), await block("run"));
  if (state.axis === "experts") {
    const found = expertsLayout(layout, families, await block("tokens"));
    return found.columns.length ? found : { missing: "The report has no experts: no router's logits were recorded, or the page was made without the runs." };
  }
  if (state.axis !== "tokens" && state.token === undefined) return null;
  const tokens = await block("tokens");
  if (!tokens?.grid.length) return { missing: "The report has no single tokens: the runs have no token layouts, there are too many, or the page was made without the runs." };
  if (state.axis === "tokens") return tokensLayout(layout, families, tokens, state.token);
  return { rows: layout.rows, columns: layout.columns, shown: cellsOfToken(layout, families, tokens, state.token), note: `errors of ${tokenName(state.token)}` };
}
