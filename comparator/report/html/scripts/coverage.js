// Coverage: what was recorded, compared and left out, and why.

async function coverageView(summary) {
  const run = await block("run");
  const parts = [heading("What was compared, by name")];
  const accounts = run.accounts;
  const reasons = (account, side) => Object.entries(account[side].left_out).map(([reason, count]) => `${count} ${reason}`).join(", ");
  const body = accounts.map((account) =>
    make("tr", { class: account.baseline.compared && account.target.compared ? "" : "failed" }, [
      account.name,
      ...["baseline", "target"].flatMap((side) => [`${account[side].compared} of ${account[side].recorded}`, reasons(account, side)]),
    ].map((cell) => make("td", {}, cell))),
  );
  parts.push(
    body.length
      ? tableOf({ id: "accounts" }, ["name", "baseline rows", "left out", "target rows", "left out"], body)
      : make("p", { class: "missing" }, "The report has no accounts of rows."),
  );
  if (run.accounts_left_out) parts.push(make("p", { class: "missing" }, `${run.accounts_left_out} more names`));
  parts.push(heading("What is wrong with the runs"));
  const notes = run.notes.map((note) => make("li", { class: note.kind }, `${note.kind}: ${note.message} (${note.category})`));
  parts.push(notes.length ? make("ul", { id: "notes" }, notes) : make("p", {}, "Nothing was found: no rank is missing, no record lost, every tap fired."));
  parts.push(heading("Ranks"));
  for (const [side, ranks] of Object.entries(run.ranks)) {
    parts.push(make("h3", {}, `${side}: ${counted(ranks.length, "rank")}`), make("ul", {}, ranks.slice(0, 64).map((rank) => make("li", {}, Object.entries(rank).filter(([key, place]) => key === "rank" || !String(place).endsWith("/1")).map(([key, place]) => `${key} ${place}`).join(", ")))));
  }
  parts.push(make("details", {}, make("summary", {}, "How it was compared"), make("pre", {}, JSON.stringify(run.config, null, 1))));
  return parts;
}
