// The address decides what is shown: #q=QUERY, #tensor=LABEL, #view=coverage; step and axis belong to the map.

const VIEWS = { map: "Map", tokens: "Tokens", routing: "Routing", coverage: "Coverage" };
const OTHER_VIEWS = { tokens: tokensView, routing: routingView, coverage: coverageView };
let lastQuery = "";
let redraw = () => {};

/** The part of an address behind "#". Spaces and the like are written so that the text can be read. */
function addressOf(state) {
  return Object.entries(state)
    .filter(([, value]) => value !== undefined && value !== null && value !== "")
    .map(([key, value]) => `${key}=${encodeURIComponent(value)}`)
    .join("&");
}

function stateOf(hash) {
  const state = {};
  for (const part of hash.replace(/^#/, "").split("&")) {
    const at = part.indexOf("=");
    if (at > 0) {
      try {
        state[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1));
      } catch {
        state[part.slice(0, at)] = part.slice(at + 1); // typed by hand, with a "%" in it
      }
    }
  }
  return state;
}

function go(changes) {
  location.hash = addressOf({ ...stateOf(location.hash), ...changes });
}

async function start() {
  const summary = await inflate("summary");
  const families = new Families(summary);
  const layout = layOut(families);
  const view = document.getElementById("view");
  const search = document.getElementById("search");
  let rows = null;
  let turn = 0;

  const loadRows = async () => {
    rows ??= new Rows(summary, families, await block("rows"));
    return rows;
  };

  const showMap = async (state, current) => {
    lastQuery = state.q ?? "";
    const step = state.step === undefined ? null : Number(state.step);
    const onopen = (cell) => openCell(cell);
    const place = make("div", { id: "map-place" });
    const controls = make("div", { class: "controls" });
    const rest = make("div", { id: "list-place" }, make("p", {}, `${counted(summary.rows, "tensor")} …`));
    const draw = (options) => {
      const map = new HeatMap({ rows: layout.rows, columns: layout.columns, families, matching: null, onopen, ...options });
      place.replaceChildren(map.element);
      map.draw();
      redraw = () => {
        map.draw();
        controls.querySelector("canvas").replaceWith(legend());
      };
    };
    controls.append(legend());
    view.replaceChildren(controls, place, rest);
    // The first picture needs the summary alone.
    draw({ shown: cellsOf(layout, families, null, null) });
    await drawn();
    performance.mark("map", { detail: { inflated: inflated.size } });
    await loadRows();
    if (current !== turn) return;
    controls.append(stepChooser(rows, state), axisChooser(state));
    let found;
    try {
      found = searchRows(lastQuery, rows);
    } catch (error) {
      rest.replaceChildren(make("p", { class: "error", id: "search-error" }, error.message));
      return;
    }
    const matching = lastQuery === "" ? null : new Set(found.map((row) => rows.columns.family[row]));
    const other = await layoutOfAxis(state, layout, rows);
    if (current !== turn) return;
    if (other?.note) controls.append(make("span", { id: "axis-note" }, other.note));
    if (other?.missing) controls.append(make("span", { id: "axis-note", class: "missing" }, other.missing));
    if (other?.shown) draw({ ...other, matching });
    else if (step !== null || matching !== null) draw({ shown: cellsOf(layout, families, rows, step), matching });
    const listed = step === null ? found : found.filter((row) => rows.columns.step[row] === step);
    const sort = state.sort in LISTED ? state.sort : "tensor";
    rest.replaceChildren(
      make("p", { id: "found" }, `${listed.length} of ${counted(summary.total, "tensor")}`),
      listOf(rows, listed, sort, (key) => go({ sort: key === "tensor" ? "" : key })),
    );
  };

  const openCell = async (cell) => {
    await loadRows();
    const step = cell.step === null || cell.step < 0 ? worstStep(cell.family) : cell.step;
    location.hash = addressOf({ tensor: families.label(cell.family) + (step < 0 ? "" : ` step=${step}`) });
  };

  const worstStep = (family) => {
    let worst = -1;
    const { columns } = rows;
    const badness = (row) => columns.category[row] * 1e6 + Math.min(columns.times[row] ?? 0, 1e5);
    for (let row = 0; row < rows.count; row += 1) {
      if (columns.family[row] === family && (worst < 0 || badness(row) > badness(worst))) worst = row;
    }
    return worst < 0 ? -1 : columns.step[worst];
  };

  const show = async () => {
    const current = (turn += 1);
    const state = stateOf(location.hash);
    if (document.activeElement !== search) search.value = state.q ?? lastQuery;
    markTab(state);
    redraw = () => {};
    document.body.dataset.view = state.tensor === undefined ? (state.view ?? "map") : "tensor";
    try {
      if (state.tensor !== undefined) {
        const parts = await tensorView(await loadRows(), state.tensor);
        if (current === turn) view.replaceChildren(...parts);
        view.scrollIntoView({ block: "nearest" });
      } else if (state.view in OTHER_VIEWS) {
        const parts = await OTHER_VIEWS[state.view](summary);
        if (current === turn) view.replaceChildren(...parts);
      } else {
        await showMap(state, current);
      }
    } catch (error) {
      view.replaceChildren(make("p", { class: "error" }, `This part of the page cannot be shown: ${error.message}`));
    }
    document.documentElement.dataset.ready = String(current);
  };

  search.addEventListener("input", () => {
    history.replaceState(null, "", `#${addressOf({ ...stateOf(location.hash), q: search.value, tensor: "", view: "" })}`);
    show();
  });
  addEventListener("hashchange", show);
  addEventListener("resize", () => redraw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  document.getElementById("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  // Paper is light, whatever the screen is.
  let onScreen;
  addEventListener("beforeprint", () => {
    onScreen = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    redraw();
  });
  addEventListener("afterprint", () => {
    if (onScreen === undefined) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = onScreen;
    redraw();
  });
  document.getElementById("copy").addEventListener("click", (event) => copyText(summary.copy, event.target));
  addEventListener("keydown", (event) => shortcut(event, search));
  await show();
}

function stepChooser(rows, state) {
  const choice = make("select", { id: "step", "aria-label": "Step", onchange: (event) => go({ step: event.target.value }) });
  choice.append(make("option", { value: "" }, "all steps"));
  for (const step of rows.steps) choice.append(make("option", { value: step, selected: state.step === String(step) }, `step ${step}`));
  return choice;
}

function axisChooser(state) {
  const choice = make("select", { id: "axis", "aria-label": "Columns of the map", onchange: (event) => go({ axis: event.target.value }) });
  for (const [value, text] of Object.entries(AXES)) {
    choice.append(make("option", { value, selected: (state.axis ?? "") === value }, text));
  }
  return choice;
}

function markTab(state) {
  const current = state.tensor === undefined ? (state.view ?? "map") : "";
  document.getElementById("tabs").replaceChildren(
    ...Object.entries(VIEWS).map(([view, text]) =>
      make("a", { href: `#${addressOf({ view: view === "map" ? "" : view })}`, "aria-current": view === current ? "page" : null }, text),
    ),
  );
}

/** "/" goes to the search, Escape to the map, "f" to the first divergence, "j" and "k" along the findings. */
function shortcut(event, search) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    search.blur();
    location.hash = addressOf({ q: lastQuery });
    return;
  }
  if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
  const click = (id) => document.getElementById(id)?.click();
  if (event.key === "/") {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "f") click("first-divergence");
  else if (event.key === "j") moveAlong(1);
  else if (event.key === "k") moveAlong(-1);
}

/** To the finding before or behind; in the list, to its link. */
function moveAlong(by) {
  const neighbour = document.getElementById(by > 0 ? "after" : "before");
  if (neighbour !== null) {
    neighbour.click();
    return;
  }
  const links = [...document.querySelectorAll("#list td.tensor a")];
  const at = links.indexOf(document.activeElement);
  links[Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
}

async function copyText(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { class: "offscreen" }); // files have no clipboard in some browsers
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => {
    button.textContent = before;
  }, 1500);
}

start();
