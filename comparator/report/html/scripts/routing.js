// Routing: tokens that chose other experts, layer by layer.

async function routingView() {
  const [run, tokens] = await Promise.all([block("run"), block("tokens")]);
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
      : make("p", {}, "No token chose other experts, or no router's logits were recorded."),
  );
  const routers = tokens?.routers ?? [];
  for (const router of routers) {
    const x = router.load.map((_, expert) => expert);
    const series = [{ label: "expert" }, { label: "rows", stroke: themed("link"), fill: `${themed("link")}66`, paths: uPlot.paths.bars({ size: [0.9] }), points: { show: false } }];
    parts.push(
      make("h3", {}, `${router.tap}: ${counted(router.experts, "expert")}, ${router.top_k} for each token${router.assumed ? " (assumed)" : ""}, ${router.flipped.length} of ${counted(router.rows, "row")} flipped`),
      chart("Rows for which both sides chose an expert", { series, axes: [{ incrs: [1, 2, 5, 10, 20, 50, 100] }, {}], scales: { x: { time: false, range: [-0.6, router.load.length - 0.4] }, y: { range: (_, low, high) => [0, high * 1.1 || 1] } } }, [x, router.load]),
    );
    if (router.margins.length) parts.push(make("p", {}, `Margins of the flips, in errors of their logits: ${[...router.margins].sort((a, b) => b - a).slice(0, 12).map(number).join(", ")}`));
  }
  return parts;
}
