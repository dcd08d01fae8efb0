// Routing: tokens that chose other experts, layer by layer.

async function routingView() {
  const [run, tokens] = await Promise.all([block("run"), block("tokens")]);
  const routers = tokens?.routers ?? [];
  const parts = [heading("Tokens that chose other experts")];
  const rows = run.flips.map((flips) => [
    flips.layer ?? "",
    `${flips.flipped} of ${flips.rows}`,
    number(flips.expected),
    number(flips.largest_margin),
    number(flips.weights_apart),
  ]);
  parts.push(
    rows.length
      ? tableOf({ id: "flips", class: "numbers" }, ["layer", "flipped", "expected from margins", "largest margin of a flip, in errors", "weights apart"], rows)
      : make("p", {}, withoutFlips(routers)),
  );
  for (const router of routers) {
    const x = router.load[0].map((_, expert) => expert);
    const bars = (label, colour, align) => ({ label, stroke: colour, fill: `${colour}66`, paths: uPlot.paths.bars({ size: [0.42], align }), points: { show: false } });
    const series = [{ label: "expert" }, bars("baseline", themed("faint"), -1), bars("target", themed("link"), 1)];
    parts.push(
      make("h3", {}, `${router.tap}: ${counted(router.experts, "expert")}, ${router.top_k} for each token${router.assumed ? " (assumed)" : ""}, ${router.flipped.length} of ${counted(router.rows, "row")} flipped`),
      chart("Rows that chose each expert", { series, axes: [{ incrs: [1, 2, 5, 10, 20, 50, 100] }, {}], scales: { x: { time: false, range: [-0.6, x.length - 0.4] }, y: { range: (_, low, high) => [0, high * 1.1 || 1] } } }, [x, ...router.load]),
    );
    if (router.margins.length) parts.push(make("p", {}, `Margins of the flips, in errors of their logits: ${[...router.margins].sort((a, b) => b - a).slice(0, 12).map(number).join(", ")}`));
  }
  return parts;
}

/** Why the analysis lists no flips. */
function withoutFlips(routers) {
  if (!routers.length) return "No token chose other experts, or no router's logits were recorded.";
  return routers.some((router) => router.flipped.length) ? "The analysis does not judge the flips below: they lie behind the fault." : "No token chose other experts.";
}
