// The view of one finding.

async function tensorView(rows, label) {
  const row = rows.find(label);
  if (row < 0) {
    return [heading(label), make("p", { class: "missing" }, "The page has no such tensor; it may be among those that were left out."), backLink()];
  }
  const details = await rows.details(row);
  const family = rows.columns.family[row];
  const parts = [
    make("h2", { id: "tensor" }, rows.label(row), " ", make("span", { class: `badge ${rows.category(row)}` }, rows.category(row))),
    neighbours(rows, row),
  ];
  if (details === null) {
    parts.push(make("p", { class: "missing" }, "The page has no details of this tensor, for there are too many; the JSON lines have them."));
    return parts;
  }
  parts.push(facts(saidOf(rows, family, row, details)));
  parts.push(...sourceParts((await block("run")).sources[details.tap]));
  const drawing = await rows.picture(row);
  if (drawing !== null) parts.push(...pictureParts(drawing, details.analysis?.floor));
  else if (rows.category(row) === "failed" && rows.anyPicture) {
    parts.push(make("p", { class: "missing" }, "This failure has no pictures: the page holds those of the first failures that can be drawn; --pictures N draws N of them."));
  }
  const evidence = details.diff ? numbersTable(details) : null;
  if (evidence) parts.push(heading("Numbers"), evidence);
  const replicas = details.replicated_checks ?? [];
  if (replicas.length) parts.push(heading("Replicas"), replicaTable(replicas));
  if (details.raw_bundle_info !== undefined) parts.push(heading("Put together from"), ...bundleTables(rows.columns.bundles[details.raw_bundle_info]));
  const traced = details.traceback_str;
  if (traced) parts.push(make("details", {}, make("summary", {}, "Traceback"), make("pre", {}, traced)));
  parts.push(make("details", {}, make("summary", {}, "Everything that is known"), make("pre", {}, JSON.stringify(details, null, 1))));
  return parts;
}

/** What is said of a finding, as pairs of a label and a sentence. */
function saidOf(rows, family, row, details) {
  const { families } = rows;
  const { analysis, diff, tokens } = details;
  const said = [];
  if (analysis) {
    said.push(["Error", `${origin(families, family)}: ${number(analysis.error)} of a row, of which its inputs explain ${number(analysis.inherited)}; ${number(analysis.multiple)} times the floor of ${number(analysis.floor)}`]);
    const test = analysis.test;
    if (test) said.push(["Strongest test", `${test.name}${test.where ? ` at ${test.where}` : ""}: ${number(test.strength)} times its threshold`]);
    if (analysis.rows_left_out) said.push(["Routing", `${counted(analysis.rows_left_out, "row")} chose other experts and are not compared`]);
  }
  if (details.shape_mismatch) said.push(["Shapes", `${JSON.stringify(details.unified_shape)} against ${JSON.stringify(details.target.shape)}`]);
  if (diff?.predicate) said.push(["Criterion", `${diff.predicate}: ${diff.passed ? "met" : "not met"}`]);
  if (details.message) said.push(["Skipped", details.message]);
  if (details.reason && !details.message) said.push(["Reason", details.reason]);
  if (details.exception_message) said.push(["Not compared", details.exception_message]);
  if (details.hint) said.push(["Hint", details.hint]);
  for (const note of [...(details.errors ?? []), ...(details.infos ?? [])]) said.push([note.kind, `${note.message} (${note.category})`]);
  if (details.baseline_value !== undefined) said.push(["Baseline", details.baseline_value], ["Target", details.target_value], ["Differs at", details.difference_path]);
  said.push(["First token beyond", details.first_bad_token], ["Tap", details.tap]);
  if (tokens) {
    const only = ["baseline", "target"].flatMap((side) => Object.entries(tokens[`only_${side}`] ?? {}).map(([reason, count]) => `only the ${side} has ${counted(count, "token")} (${reason})`));
    said.push(["Tokens", [counted(tokens.matched, "token") + " compared", ...only].join("; ")]);
  }
  said.push(["Level", details.level === "full" ? "" : details.level]);
  return said;
}

const STATISTICS = ["mean", "abs_mean", "std", "min", "max", "nan_count", "inf_count"];

/** Both sides and their difference, as one table. */
function numbersTable({ baseline, target, diff, diff_downcast: downcast, downcast_dtype: dtype }) {
  const left = baseline.stats ?? {};
  const right = target.stats ?? left; // the page leaves out what is the same
  const body = [["shape, dtype", `${JSON.stringify(baseline.shape)} ${baseline.dtype}`, `${JSON.stringify(target.shape)} ${target.dtype}`]];
  for (const name of STATISTICS) body.push([name, number(left[name]), number(right[name])]);
  for (const at of Object.keys(left.percentiles ?? {})) body.push([`percentile ${at}`, number(left.percentiles[at]), number(right.percentiles?.[at])]);
  const sides = tableOf({ class: "numbers" }, ["", "baseline", "target"], body);
  const where = `${JSON.stringify(diff.max_diff_coord)}${diff.max_diff_token ? ` (${diff.max_diff_token})` : ""}`;
  const pairs = [
    ["rel", number(diff.rel_diff)],
    ["relative L2 error", number(diff.relative_l2)],
    ["largest difference", `${number(diff.max_abs_diff)} at ${where}: ${number(diff.baseline_at_max)} against ${number(diff.target_at_max)}`],
    ["mean difference", number(diff.mean_abs_diff)],
    ["elements that differ", diff.differing],
    ["target over baseline", `a factor of ${number(diff.scale)} fits best`],
    ["largest rel of a token", diff.max_token_rel === undefined ? "" : number(diff.max_token_rel)],
    ["percentiles of differences", Object.entries(diff.abs_diff_percentiles ?? {}).map(([at, value]) => `p${at} ${number(value)}`).join(", ")],
    [`as ${dtype}`, downcast ? `rel ${number(downcast.rel_diff)}, max_abs ${number(downcast.max_abs_diff)}` : ""],
  ];
  return make("div", { class: "side-by-side" }, sides, facts(pairs));
}

function replicaTable(checks) {
  const head = ["side", "axis", "group", "replica", "agrees", "largest difference"];
  const body = checks.map((check) => [check.side, check.axis, check.group_index, check.compared_index, check.passed ? "yes" : "no", check.diff ? number(check.diff.max_abs_diff) : "other shape"]);
  return tableOf({}, head, body);
}

/** What each rank holds of the tensor, side by side. */
function bundleTables(bundle) {
  return [["x", "baseline"], ["y", "target"]].flatMap(([key, side]) => {
    const found = bundle[key];
    if (found === undefined) return [];
    const body = found.files.map((file) => {
      const places = Object.entries(file.parallel_info ?? {}).filter(([, place]) => !place.endsWith("/1"));
      return [file.rank, places.map(([axis, place]) => `${axis} ${place}`).join(", "), JSON.stringify(file.shape ?? []), file.dtype, file.kept ? "" : `left out: ${file.reason}`];
    });
    return [make("h3", {}, `${side}, dims ${found.dims ?? "none"}`), tableOf({}, ["rank", "place", "shape", "dtype", ""], body)];
  });
}

/** The tap's line in the source, and the edit of the patch config that put it there. */
function sourceParts(source) {
  if (source === undefined) return [];
  const lines = source.lines.map((line, at) => {
    const here = source.first + at;
    return make("span", { class: here === source.line ? "line here" : "line" }, `${String(here).padStart(5)}  ${line}`);
  });
  const parts = [heading(`Recorded at ${source.file}:${source.line}`)];
  parts.push(lines.length ? make("pre", { id: "source" }, lines) : make("p", { class: "missing" }, "The file is not on the machine where the report was made."));
  if (source.config_lines.length) parts.push(make("details", {}, make("summary", {}, `The edit in ${source.config}`), make("pre", { id: "edit" }, source.config_lines.join("\n"))));
  return parts;
}

/** Links to the findings before and after, in the order of execution. */
function neighbours(rows, row) {
  const link = (to, text, id) => (to < 0 || to >= rows.count ? null : make("a", { id, href: `#${addressOf({ tensor: rows.label(to) })}` }, `${text} ${rows.label(to)}`));
  return make("p", { class: "neighbours" }, backLink(), link(row - 1, "◂", "before"), link(row + 1, "▸", "after"));
}

function backLink() {
  return make("a", { id: "back", href: `#${addressOf({ q: lastQuery })}` }, "▴ map and list");
}
