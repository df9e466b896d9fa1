// The page of the "Joint loss" tab: controls, a figure that the server has made, and a table.
// Names of runs and terms reach the document as text nodes only.

const KINDS = {
  terms: ["Terms", "Which term drives training: weighted losses, stacked, and their total."],
  losses: ["Losses", "Raw losses: does each term learn, and does validation follow?"],
  weights: ["Weights", "What schedules and rules do to the weights."],
  readings: ["Readings", "Temperature, bias, noise and what else terms report."],
  gradients: ["Gradients", "How long the gradients of the terms are, and how often they conflict."],
  cosines: ["Cosines", "Which terms pull in the same direction, and which in opposite ones."],
  retrieval: ["Retrieval", "How often a search finds the right one, in both directions."],
  pareto: ["Pareto", "One final value against another, over runs."],
};
const DEFAULTS = {
  kind: "terms", compare: "rows", x: "step", smoothing: "0", share: "false", scale: "",
  split: "both", a: "", b: "", run: null, term: null,
};
const KEY = "p.joint_loss.";
// More runs are not shown at once unless the user asks for them.
const RUNS_AT_FIRST = 4;

let state = {...DEFAULTS};
let index = {runs: [], terms: [], values: []};
let latest = 0;
let reloads = 0;
let shownRows = "";
const ui = {};

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// --- State, in the address of TensorBoard, so that a view can be shared.

function host() {
  try {
    void window.parent.location.hash;
    return window.parent;
  } catch {
    return window; // Another page embeds TensorBoard.
  }
}

function loadState() {
  const parts = host().location.hash.replace(/^#/, "").split("&");
  const found = {...DEFAULTS};
  for (const part of parts) {
    if (!part.startsWith(KEY)) continue;
    const [name, value] = part.slice(KEY.length).split("=");
    if (!(name in DEFAULTS) || value === undefined) continue;
    try {
      const text = decodeURIComponent(value);
      found[name] = name === "run" || name === "term" ? JSON.parse(text) : text;
    } catch { /* Half a link: the default stays. */ }
  }
  if (!(found.kind in KINDS)) found.kind = DEFAULTS.kind;
  for (const name of ["run", "term"]) if (!Array.isArray(found[name])) found[name] = null;
  return found;
}

function saveState() {
  const page = host();
  const others = page.location.hash.replace(/^#/, "").split("&").filter(
    (part) => part && !part.startsWith(KEY));
  const own = Object.entries(state)
    .filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(DEFAULTS[name]))
    .map(([name, value]) => KEY + name + "=" + encodeURIComponent(
      Array.isArray(value) ? JSON.stringify(value) : value));
  const hash = "#" + [...(others.length ? others : ["joint_loss"]), ...own].join("&");
  if (hash !== page.location.hash) page.history.replaceState(page.history.state, "", hash);
}

function set(changes) {
  state = {...state, ...changes};
  saveState();
  showControls();
  refresh();
}

// --- Requests.

function shownRuns() {
  const names = index.runs.map((run) => run.name);
  if (state.run === null) return names.slice(-RUNS_AT_FIRST);
  return names.filter((name) => state.run.includes(name));
}

function shownTerms() {
  return state.term === null ? index.terms : index.terms.filter((x) => state.term.includes(x));
}

function query() {
  const parts = new URLSearchParams();
  for (const run of shownRuns()) parts.append("run", run);
  if (state.term !== null) for (const term of shownTerms()) parts.append("term", term);
  for (const name of ["kind", "compare", "x", "smoothing", "share", "scale", "a", "b"]) {
    if (state[name]) parts.append(name, state[name]);
  }
  if (state.split !== "both") parts.append("split", state.split);
  if (ui.chart.clientWidth < 760) parts.append("columns", "2");
  parts.append("theme", isDark() ? "dark" : "light");
  return parts.toString();
}

async function ask(path) {
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new Error("TensorBoard does not answer. Is its process still running?");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error || `TensorBoard answers ${response.status}.`);
  return content;
}

// --- What is on the page.

function isDark() {
  try {
    return window.parent.document.body.classList.contains("dark-mode");
  } catch {
    return window.matchMedia("(prefers-color-scheme: dark)").matches;
  }
}

function choice(name, label, options) {
  const select = make("select", {id: name, onchange: () => set({[name]: select.value})});
  for (const [value, text] of options) select.append(make("option", {value}, text));
  ui[name] = select;
  return make("label", {class: "choice", for: name}, make("span", {}, label), select);
}

function build() {
  document.body.replaceChildren();
  document.documentElement.lang = "en";
  document.title = "Joint loss";
  ui.tabs = make("nav", {class: "kinds", role: "tablist", "aria-label": "Figure"});
  for (const [kind, [name, hint]] of Object.entries(KINDS)) {
    ui.tabs.append(make("button", {
      role: "tab", "data-kind": kind, title: hint, "aria-controls": "chart",
      onclick: () => set({kind}), onkeydown: moveBetweenTabs,
    }, name));
  }
  ui.smoothing = make("input", {
    id: "smoothing", type: "range", min: "0", max: "0.99", step: "0.01",
    onchange: () => set({smoothing: ui.smoothing.value}),
    oninput: () => { ui.smoothingValue.value = ui.smoothing.value; },
  });
  ui.smoothingValue = make("output", {for: "smoothing"});
  ui.controls = make("div", {class: "controls"},
    choice("share", "Show", [["false", "absolute"], ["true", "share of the total"]]),
    choice("split", "Data", [["both", "train and validation"], ["train", "train"],
      ["validation", "validation"]]),
    choice("compare", "Runs", [["rows", "one below the other"], ["overlay", "in the same axes"]]),
    choice("x", "x axis", [["step", "step"], ["epoch", "epoch"], ["time", "time"]]),
    choice("scale", "y axis", [["", "automatic"], ["linear", "linear"], ["log", "logarithmic"]]),
    choice("a", "a", [["", "first term"]]),
    choice("b", "b", [["", "second term"]]),
    make("label", {class: "choice", for: "smoothing"}, make("span", {}, "Smoothing"),
      make("span", {class: "range"}, ui.smoothing, ui.smoothingValue)));
  ui.runs = make("fieldset", {id: "runs"});
  ui.terms = make("fieldset", {id: "terms"});
  ui.hint = make("p", {class: "hint"});
  ui.csv = make("a", {class: "button", id: "csv", download: "joint_loss.csv"}, "Download CSV");
  ui.status = make("div", {id: "status", role: "status", "aria-live": "polite"});
  ui.notes = make("ul", {id: "notes"});
  ui.chart = make("div", {id: "chart", role: "tabpanel", "aria-label": "Figure"});
  ui.table = make("div", {id: "table", tabindex: "0", role: "region", "aria-label": "Latest values"});
  ui.main = make("main", {},
    ui.tabs, ui.controls,
    make("div", {class: "line"}, ui.hint, ui.csv),
    ui.status, ui.notes, ui.chart, ui.table);
  ui.side = make("details", {class: "side", open: window.innerWidth >= 900},
    make("summary", {}, "Runs and terms"), ui.runs, ui.terms);
  document.body.append(make("div", {id: "page"}, ui.side, ui.main));
}

function moveBetweenTabs(event) {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!step) return;
  const kinds = Object.keys(KINDS);
  const kind = kinds[(kinds.indexOf(state.kind) + step + kinds.length) % kinds.length];
  set({kind});
  ui.tabs.querySelector(`[data-kind="${kind}"]`).focus();
}

function showControls() {
  for (const tab of ui.tabs.children) {
    const isShown = tab.dataset.kind === state.kind;
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
  }
  for (const name of ["share", "split", "compare", "x", "scale", "smoothing"]) {
    ui[name].value = state[name];
  }
  ui.smoothingValue.value = state.smoothing;
  const used = {
    share: state.kind === "terms",
    split: ["terms", "losses", "readings"].includes(state.kind),
    compare: shownRuns().length > 1 && !["cosines", "pareto"].includes(state.kind),
    x: state.kind !== "pareto",
    scale: state.kind !== "cosines",
    a: state.kind === "pareto",
    b: state.kind === "pareto",
    smoothing: !["cosines", "pareto"].includes(state.kind),
  };
  for (const [name, isUsed] of Object.entries(used)) ui[name].closest(".choice").hidden = !isUsed;
  ui.hint.textContent = KINDS[state.kind][1];
  ui.csv.href = "csv?" + query();
}

function showLists(colors = {}) {
  fill(ui.runs, "Runs", index.runs.map((run) => run.name), shownRuns(), "run", {});
  fill(ui.terms, "Terms", index.terms, shownTerms(), "term", colors);
  for (const [name, first] of [["a", "first term"], ["b", "second term"]]) {
    const options = [make("option", {value: ""}, first)];
    for (const value of [...index.terms, ...index.values]) {
      options.push(make("option", {value}, value));
    }
    ui[name].replaceChildren(...options);
    ui[name].value = state[name];
  }
}

function fill(list, title, names, shown, key, colors) {
  const focus = document.activeElement?.closest?.("fieldset") === list
    ? document.activeElement.dataset.name : undefined;
  const all = make("button", {class: "small", onclick: () => set({[key]: [...names]})}, "all");
  const none = make("button", {class: "small", onclick: () => set({[key]: []})}, "none");
  list.replaceChildren(make("legend", {}, title, " ", all, none));
  for (const name of names) {
    const box = make("input", {
      type: "checkbox", checked: shown.includes(name), "data-name": name,
      onchange: () => set({[key]: names.filter((x) => x === name ? box.checked : shown.includes(x))}),
    });
    const swatch = make("i", {class: "swatch"});
    if (colors[name]) swatch.style.background = colors[name];
    list.append(make("label", {title: name}, box, ...(key === "term" ? [swatch] : []),
      make("span", {}, name)));
    if (name === focus) box.focus();
  }
}

function say(text, isError = false) {
  ui.status.className = isError ? "error" : "";
  ui.status.textContent = text;
}

function clearChart() {
  if (window.Plotly && ui.chart.data) window.Plotly.purge(ui.chart);
  ui.chart.replaceChildren();
  ui.notes.replaceChildren();
}

function clearAll() {
  clearChart();
  ui.table.replaceChildren();
  shownRows = "";
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e5) ? value.toExponential(2) : value.toFixed(4);
}

function percent(value, sign = false) {
  if (value === null || value === undefined) return "–";
  return (sign && value > 0 ? "+" : "") + (100 * value).toFixed(1) + " %";
}

function sparkline(values) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const known = values.filter((x) => x !== null);
  svg.setAttribute("viewBox", "0 0 80 20");
  svg.setAttribute("aria-hidden", "true");
  if (known.length < 2) return svg;
  const low = Math.min(...known);
  const range = Math.max(...known) - low || 1;
  const points = values.map((x, i) => x === null ? null
    : `${(2 + 76 * i / (values.length - 1)).toFixed(1)},${(18 - 16 * (x - low) / range).toFixed(1)}`);
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("points", points.filter((x) => x !== null).join(" "));
  svg.append(line);
  return svg;
}

// A sign before a term that has faults; their reasons show when the pointer is on it.
function mark(faults) {
  if (!faults.length) return [];
  const title = faults.map(({reason}) => reason).join("\n\n");
  return [make("span", {class: "mark", role: "img", tabindex: "0", title, "aria-label": title}, "!")];
}

function showTable(rows) {
  const head = make("tr", {}, make("th", {scope: "col", class: "name"}, "run"),
    make("th", {scope: "col", class: "name"}, "term"), make("th", {scope: "col"}, "weight"));
  for (const split of ["train", "validation"]) {
    for (const text of ["raw loss", "change", "trend", "weighted", "share"]) {
      head.append(make("th", {
        scope: "col", title: text === "change" ? "since the epoch before" : split,
      }, text));
    }
  }
  const groups = make("tr", {}, make("td", {colspan: "3"}),
    make("th", {colspan: "5", scope: "colgroup"}, "train"),
    make("th", {colspan: "5", scope: "colgroup"}, "validation"));
  const body = make("tbody");
  for (const row of rows) {
    const weight = (row.train ?? row.validation ?? {}).weight;
    const line = make("tr", {},
      make("td", {class: "name", title: row.run}, row.run),
      make("th", {class: "name", scope: "row", title: row.term},
        ...mark(row.marks), row.term),
      make("td", {}, number(weight)));
    for (const split of ["train", "validation"]) {
      const values = row[split] ?? {};
      line.append(make("td", {}, number(values.raw)), make("td", {}, percent(values.change, true)),
        make("td", {}, sparkline(values.trend ?? [])), make("td", {}, number(values.weighted)),
        make("td", {}, percent(values.share)));
    }
    body.append(line);
  }
  ui.table.replaceChildren(make("h2", {}, "Latest values"),
    make("table", {}, make("thead", {}, groups, head), body));
}

// --- Drawing.

let script;
function loadPlotly() {
  script ??= new Promise((resolve, reject) => {
    const failed = () => reject(new Error("The script of Plotly has not been loaded. Reload."));
    document.head.append(make("script", {src: "plotly.min.js", onload: resolve, onerror: failed}));
  });
  return script;
}

function theme() {
  document.documentElement.classList.toggle("dark", isDark());
}

async function refresh() {
  const request = ++latest;
  theme();
  ui.main.setAttribute("aria-busy", "true");
  try {
    await draw(request);
  } catch (error) {
    if (request !== latest) return;
    clearChart();
    say(error.message, true);
  } finally {
    if (request === latest) {
      ui.main.removeAttribute("aria-busy");
      ui.main.dataset.drawn = String(request);
    }
  }
}

async function draw(request) {
  if (!index.runs.length) {
    clearAll();
    say("No values of a joint loss yet. Train with "
      + "keras_jointloss.callbacks.JointLossCallback(log_dir=...) and start TensorBoard on that "
      + "folder. Values appear at the end of the first epoch; then reload. A run whose event file "
      + "is damaged at its start has no values either.");
    return;
  }
  if (!shownRuns().length || (state.term !== null && !shownTerms().length)) {
    clearAll();
    say(`Choose a ${shownRuns().length ? "term" : "run"} on the left.`);
    return;
  }
  if (!ui.chart.data) say("Loading …");
  if (index.plotly) await drawFigure(request);
  else say(`The figures need Plotly. Install it beside TensorBoard, then start it again: ${index.install}`);
  // The table depends on less than the figure, and comes after it.
  const rows = JSON.stringify([reloads, shownRuns(), shownTerms()]);
  if (request !== latest || rows === shownRows) return;
  const table = await ask("table?" + query());
  if (request !== latest) return;
  showTable(table.rows);
  shownRows = rows;
}

async function drawFigure(request) {
  const [answer] = await Promise.all([ask("figure?" + query()), loadPlotly()]);
  if (request !== latest) return;
  showLists(answer.colors);
  if (answer.figure.message) {
    clearChart();
    say(answer.figure.message);
  } else {
    const {data, layout} = answer.figure;
    ui.chart.style.height = `${layout.height}px`;
    await window.Plotly.react(ui.chart, data, layout, {
      responsive: true, displaylogo: false,
      toImageButtonOptions: {filename: `joint_loss_${state.kind}`, scale: 2},
      modeBarButtonsToRemove: ["lasso2d", "select2d"],
    });
    say("");
    ui.main.dataset.first ??= String(performance.now());
  }
  ui.notes.replaceChildren(...answer.notes.map((note) => make("li", {}, note)));
}

async function reload() {
  try {
    index = await ask("runs");
    reloads += 1;
  } catch (error) {
    say(error.message, true);
    return;
  }
  showLists();
  showControls();
  await refresh();
}

function followTensorBoard() {
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.isReply) return;
    channel.port1.postMessage(JSON.stringify(
      {type: message.type, id: message.id, payload: null, error: null, isReply: true}));
    if (message.type === "experimental.DataReloaded") reload();
  };
  window.parent.postMessage("experimental.bootstrap", "*", [channel.port2]);
  try {
    new MutationObserver(() => {
      if (document.documentElement.classList.contains("dark") !== isDark()) refresh();
    }).observe(window.parent.document.body, {attributeFilter: ["class"]});
    window.parent.addEventListener("hashchange", () => {
      const found = loadState();
      if (JSON.stringify(found) === JSON.stringify(state)) return;
      state = found;
      showLists();
      showControls();
      refresh();
    });
  } catch { /* Another page embeds TensorBoard. */ }
}

export async function render() {
  document.head.append(make("link", {rel: "stylesheet", href: "page.css"}));
  state = loadState();
  build();
  theme();
  showControls();
  say("Loading …");
  followTensorBoard();
  await reload();
}
