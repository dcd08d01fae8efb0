// Charts of a tensor. Lines, bars and points are drawn by uPlot.

const CHART_HEIGHT = 190;

/** A chart in a box with a title; drawn when the box is in the page, as wide as the box. */
function chart(title, options, data) {
  const box = make("figure", { class: "chart" }, make("figcaption", {}, title));
  const place = make("div");
  box.append(place);
  requestAnimationFrame(() => {
    const width = Math.max(240, Math.min(640, box.clientWidth || 560));
    const axis = { stroke: themed("faint"), grid: { stroke: themed("line"), width: 1 }, ticks: { stroke: themed("line") }, font: "11px system-ui, sans-serif" };
    const { axes = [{}, {}], ...rest } = options;
    const whole = {
      width,
      height: CHART_HEIGHT,
      legend: { show: true },
      scales: { x: { time: false } },
      axes: axes.map((own) => ({ ...axis, ...own })),
      ...rest,
    };
    new uPlot(whole, data, place);
  });
  return box;
}

function pictureParts(picture, floor) {
  const parts = [heading("Evidence")];
  if (picture.rows_drawn < picture.rows) {
    parts.push(make("p", { class: "missing" }, `Drawn from a sample: ${picture.rows_drawn} of ${picture.rows} rows.`));
  }
  parts.push(
    make(
      "div",
      { class: "charts" },
      profileChart("Error of each token (relative L2)", "token", picture.tokens, floor),
      profileChart("Error of each channel", "channel", picture.channel, null),
      histogramChart(picture.histogram),
      scatterChart(picture.scatter),
    ),
    aroundParts(picture, floor),
  );
  return parts;
}

function profileChart(title, what, profile, floor) {
  const each = profile.each === 1 ? "" : `, the largest of ${profile.each} at each point`;
  const x = profile.error.map((_, at) => at * profile.each);
  const series = [{ label: what }, { label: "error", stroke: themed("link"), width: 1.5, points: { show: x.length < 80, size: 4 } }];
  const data = [x, profile.error];
  if (floor) {
    series.push({ label: "floor", stroke: themed("introduced"), dash: [6, 4], width: 1, points: { show: false } });
    data.push(x.map(() => floor));
  }
  return chart(title + each, { series, scales: { x: { time: false }, y: { range: (_, low, high) => [0, high * 1.1 || 1] } }, axes: [{}, { size: 70 }] }, data);
}

function histogramChart({ low, high, counts, equal }) {
  if (!counts.length) return make("p", {}, "No element differs.");
  const width = (high - low) / counts.length;
  const x = counts.map((_, at) => low + (at + 0.5) * width);
  const series = [{ label: "difference" }, { label: "elements", stroke: themed("link"), fill: `${themed("link")}66`, paths: uPlot.paths.bars({ size: [1] }), points: { show: false } }];
  return chart(`Target less baseline; ${counted(equal, "element")} the same`, { series, axes: [{}, { size: 70 }] }, [x, counts]);
}

function scatterChart([x, y]) {
  const [low, high] = [Math.min(...x, ...y), Math.max(...x, ...y)];
  const margin = (high - low) * 0.05 || 1;
  const range = [low - margin, high + margin];
  // The diagonal is drawn through the points of the sample: where both sides agree.
  const series = [
    { label: "baseline" },
    { label: "target", stroke: themed("link"), paths: () => null, points: { show: true, size: 4, fill: themed("link") } },
    { label: "equal", stroke: themed("faint"), width: 1, points: { show: false } },
  ];
  return chart("Target against baseline, a sample and the worst", { series, scales: { x: { time: false, range }, y: { range } }, axes: [{}, { size: 70 }] }, [x, y, x]);
}

const SIDES = {
  difference: "Difference",
  baseline: "Baseline",
  target: "Target",
  both: "Side by side",
  slider: "Slider",
};

/** Both sides around the worst element, as tabs over one scale of colours. */
function aroundParts({ around, rows_drawn: drawn, rows }, floor) {
  const place = make("div", { class: "around" });
  const slider = make("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": "Share that shows the baseline" });
  const buttons = Object.entries(SIDES).map(([side, text]) =>
    make("button", { type: "button", role: "tab", "data-side": side, onclick: () => show(side) }, text),
  );
  const show = (side) => {
    for (const button of buttons) button.setAttribute("aria-selected", String(button.dataset.side === side));
    const values = valuesAround(around, floor);
    const grid = (which, of = values) => valueGrid(around, of[which], which === "difference" ? values.differences : values.sides, which);
    if (side === "both") place.replaceChildren(make("div", { class: "side-by-side" }, grid("baseline"), grid("target")));
    else if (side === "slider") {
      const mix = () => {
        const columns = around.baseline[0].length;
        const split = Math.round((slider.value / 100) * columns);
        const mixed = around.baseline.map((row, r) => row.map((value, c) => (c < split ? value : around.target[r][c])));
        place.replaceChildren(slider, valueGrid(around, mixed, values.sides, "slider"));
      };
      slider.oninput = mix;
      mix();
    } else place.replaceChildren(grid(side));
  };
  show("difference");
  const unit = floor ? "in floors: of a row's root mean square times the floor" : "absolute";
  const where = drawn < rows ? "the worst element of the rows drawn" : "the worst element";
  return make(
    "div",
    { id: "around" },
    make("h3", {}, `Around ${where} (row ${around.row + around.worst[0]}, channel ${around.channel + around.worst[1]}); difference ${unit}`),
    make("div", { role: "tablist", class: "controls" }, buttons),
    make("div", { class: "scroll" }, place),
  );
}

/** The values of each tab and their common ranges. */
function valuesAround({ baseline, target, row_size: sizes }, floor) {
  const difference = baseline.map((row, r) =>
    row.map((value, c) => {
      const gap = target[r][c] === null || value === null ? null : target[r][c] - value;
      return gap === null ? null : floor && sizes[r] > 0 ? gap / (floor * sizes[r]) : gap;
    }),
  );
  const flat = (rows) => rows.flat().filter((value) => value !== null);
  const reach = Math.max(0, ...flat(difference).map(Math.abs));
  const both = [...flat(baseline), ...flat(target)];
  return { baseline, target, difference, differences: [0, reach], sides: [Math.min(...both), Math.max(...both)] };
}

/** Values as a grid of cells, with the worst one outlined. */
function valueGrid({ row, channel, worst, tokens }, values, [low, high], which) {
  const cell = [46, 20];
  const side = tokens.length ? 170 : 60;
  const size = [side + cell[0] * values[0].length, 20 + cell[1] * values.length];
  const ratio = window.devicePixelRatio || 1;
  const canvas = make("canvas", { role: "img", "aria-label": `${which} around the worst element`, width: size[0] * ratio, height: size[1] * ratio });
  canvas.style.width = `${size[0]}px`;
  canvas.style.height = `${size[1]}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = "10px system-ui, sans-serif";
  context.textBaseline = "middle";
  const dark = isDark();
  values[0].forEach((_, c) => {
    context.fillStyle = themed("faint");
    context.fillText(String(channel + c), side + c * cell[0] + 4, 10);
  });
  values.forEach((line, r) => {
    context.fillStyle = themed("faint");
    context.fillText(tokens[r] || `row ${row + r}`, 2, 20 + (r + 0.5) * cell[1], side - 6);
    line.forEach((value, c) => {
      const [x, y] = [side + c * cell[0], 20 + r * cell[1]];
      const size = which === "difference" ? Math.abs(value ?? high) : (value ?? high);
      const share = high > low ? (size - low) / (high - low) : 0;
      context.fillStyle = scaleColour(share, dark);
      context.fillRect(x, y, cell[0] - 1, cell[1] - 1);
      context.fillStyle = share > 0.55 === dark ? "#10141b" : "#f6f8fb";
      context.fillText(value === null ? "nan" : value.toPrecision(3), x + 3, y + cell[1] / 2, cell[0] - 6);
      if (r === worst[0] && c === worst[1]) {
        context.strokeStyle = themed("introduced");
        context.lineWidth = 2;
        context.strokeRect(x, y, cell[0] - 1, cell[1] - 1);
      }
    });
  });
  return canvas;
}
