// The data of the page: blocks of deflated JSON in elements with ids "data-NAME", inflated when they are needed.

/** A block, by its name. */
async function inflate(name) {
  const element = document.getElementById(`data-${name}`);
  if (element === null) throw new Error(`the page has no block ${name}; was it cut off?`);
  const binary = atob(element.textContent);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at += 1) bytes[at] = binary.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

const inflated = new Map();

/** A block, inflated once and kept. */
function block(name) {
  if (!inflated.has(name)) inflated.set(name, complete().then(() => inflate(name)));
  return inflated.get(name);
}

/** When all of the file is there: blocks stand behind the scripts. */
function complete() {
  if (document.readyState !== "loading") return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve, { once: true }));
}

/** One row of columns as a nested object: "baseline.stats.mean" becomes { baseline: { stats: { mean } } }. */
function rowOf(table, row) {
  const record = {};
  const put = (path, value) => {
    if (value === null || value === undefined) return;
    const keys = path.split(".");
    let place = record;
    for (const key of keys.slice(0, -1)) place = place[key] ??= {};
    place[keys[keys.length - 1]] = value;
  };
  for (const [path, value] of Object.entries(table.same)) put(path, value);
  for (const [path, values] of Object.entries(table.columns)) put(path, values[row]);
  return record;
}

/** What the summary says of the families, with a label for each. */
class Families {
  constructor(summary) {
    this.summary = summary;
    this.columns = summary.families;
    this.count = this.columns.name.length;
    this.byLabel = null;
  }

  name(family) {
    return this.summary.names[this.columns.name[family]];
  }

  layer(family) {
    return this.columns.layer[family];
  }

  judged(family) {
    return this.summary.judged[this.columns.judged[family]];
  }

  text(column, family) {
    const value = this.columns[column][family];
    return value === null ? "" : this.summary.texts[value];
  }

  /** Tags as pairs; that of the layer with its value. */
  tags(family) {
    return Object.entries(this.summary.tags[this.columns.tags[family]]).map(([key, value]) =>
      value === null ? [key, String(this.columns.layer[family])] : [key, value],
    );
  }

  label(family) {
    return [this.name(family), ...this.tags(family).map(([key, value]) => `${key}=${value}`)].join(" ");
  }

  /** The column of the map: what is the same in every layer. */
  tapOf(family) {
    const tags = Object.entries(this.summary.tags[this.columns.tags[family]]).filter(([, value]) => value !== null);
    return [this.name(family), ...tags.map(([key, value]) => `${key}=${value}`)].join(" ");
  }

  /** The family with a label; undefined when there is none. */
  find(label) {
    if (this.byLabel === null) {
      this.byLabel = new Map();
      for (let family = 0; family < this.count; family += 1) this.byLabel.set(this.label(family), family);
    }
    return this.byLabel.get(label);
  }

  /** The worst category of its findings: 0 passed, 1 skipped, 2 failed, 3 errored. */
  category(family) {
    const counts = this.columns.counts[family];
    for (let category = counts.length - 1; category > 0; category -= 1) if (counts[category]) return category;
    return 0;
  }
}

/** The findings that the page holds one by one. */
class Rows {
  constructor(summary, families, columns) {
    this.summary = summary;
    this.families = families;
    this.columns = columns;
    this.count = columns.family.length;
    this.steps = [...new Set(columns.step)].filter((step) => step >= 0).sort((a, b) => a - b);
  }

  label(row) {
    const step = this.columns.step[row];
    return this.families.label(this.columns.family[row]) + (step < 0 ? "" : ` step=${step}`);
  }

  category(row) {
    return this.summary.categories[this.columns.category[row]];
  }

  ranks(row) {
    return this.columns.ranks_of[this.columns.ranks[row]];
  }

  /** The row with a label; -1 when there is none. */
  find(label) {
    const [, name, step] = /^(.*?)(?: step=(\d+))?$/s.exec(label);
    const family = this.families.find(name);
    if (family === undefined) return -1;
    return this.columns.family.findIndex(
      (found, row) => found === family && (step === undefined || this.columns.step[row] === Number(step)),
    );
  }

  /** The number of a finding in the order of execution. */
  order(row) {
    return this.columns.number === null ? row : this.columns.number[row];
  }

  get anyPicture() {
    return Object.keys(this.columns.pictures).length > 0;
  }

  /** Numbers that draw a finding; null where the page has none. */
  async picture(row) {
    const at = this.columns.pictures[this.order(row)];
    return at === undefined ? null : block(`picture-${at}`);
  }

  /** Everything that is known of a finding; null where the page does not have it. */
  async details(row) {
    const place = this.columns.detail[row];
    if (place < 0) return null;
    const size = this.summary.chunk;
    return rowOf(await block(`details-${Math.floor(place / size)}`), place % size);
  }
}
