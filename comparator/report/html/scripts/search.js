// The language of the search box: words and KEY:VALUE, all of which have to hold; "!" before one turns it round.
//
//   s:failed layer:3 rank:1 !skipped o_proj times:>2 step:4-7 "a name with spaces" s:introduced

const STATUSES = {
  passed: ["passed"],
  skipped: ["skipped"],
  failed: ["failed"],
  errored: ["errored"],
  introduced: ["introduced-here"],
  inherited: ["inherited-from"],
  flipped: ["after-a-routing-flip"],
};

/** The terms of a query: { key, value, not }; the key is "" for a word. */
function parseQuery(text) {
  const terms = [];
  for (const [, not, key, quoted, plain] of text.matchAll(/(!?)(?:([A-Za-z_][\w.]*):)?(?:"([^"]*)"|(\S+))/g)) {
    terms.push({ key: (key ?? "").toLowerCase(), value: quoted ?? plain, not: not === "!" });
  }
  return terms;
}

/** A test of numbers: "3", "2-5", ">1.5", "<=2", "1,4,7"; null when the text is none of these. */
function numberTest(text) {
  const compared = /^(>=|<=|>|<)(.+)$/.exec(text);
  if (compared) {
    const limit = Number(compared[2]);
    if (Number.isNaN(limit)) return null;
    return {
      ">": (value) => value > limit,
      "<": (value) => value < limit,
      ">=": (value) => value >= limit,
      "<=": (value) => value <= limit,
    }[compared[1]];
  }
  const range = /^(\d+)-(\d+)$/.exec(text);
  if (range) return (value) => value >= Number(range[1]) && value <= Number(range[2]);
  const listed = text.split(",").map(Number);
  return listed.some(Number.isNaN) ? null : (value) => listed.includes(value);
}

/** What one term asks of a finding: a function of (row, family) that is true or false. Throws Error for a bad term. */
function testOf(term, rows) {
  const { families, columns } = rows;
  const wanted = term.value.toLowerCase();
  const numeric = (get) => {
    const test = numberTest(term.value);
    if (test === null) throw new Error(`${term.key}: takes a number, a range (2-5) or a limit (>3), not ${term.value}`);
    return (row, family) => {
      const value = get(row, family);
      return value !== null && value !== undefined && test(value);
    };
  };
  const contains = (get) => (row, family) => get(row, family).toLowerCase().includes(wanted);
  switch (term.key) {
    case "":
      return wanted in STATUSES ? statusTest(wanted, rows) : contains((row) => rows.label(row));
    case "s":
    case "status":
      if (!(wanted in STATUSES)) throw new Error(`s: takes one of ${Object.keys(STATUSES).join(", ")}`);
      return statusTest(wanted, rows);
    case "layer":
      return numeric((row, family) => families.layer(family));
    case "step":
      return numeric((row) => columns.step[row]);
    case "rank": {
      const test = numberTest(term.value);
      if (test === null) throw new Error(`rank: takes a number, not ${term.value}`);
      return (row) => rows.ranks(row).some(test);
    }
    case "times":
      return numeric((row) => columns.times[row]);
    case "rel":
      return numeric((row) => columns.rel[row]);
    case "max_abs":
      return numeric((row) => columns.max_abs[row]);
    case "name":
      return contains((row, family) => families.name(family));
    case "tap":
      return contains((row, family) => families.text("tap", family));
    default:
      return (row, family) =>
        families.tags(family).some(([key, value]) => key.toLowerCase() === term.key && value.toLowerCase() === wanted);
  }
}

function statusTest(status, rows) {
  const wanted = STATUSES[status];
  return (row, family) => wanted.includes(rows.category(row)) || wanted.includes(rows.families.judged(family));
}

/** The rows that a query finds, in the order of execution. Throws Error for what it does not understand. */
function searchRows(text, rows) {
  const tests = parseQuery(text).map((term) => [testOf(term, rows), term.not]);
  const found = [];
  for (let row = 0; row < rows.count; row += 1) {
    const family = rows.columns.family[row];
    if (tests.every(([test, not]) => test(row, family) !== not)) found.push(row);
  }
  return found;
}
