// What the user has chosen, in the address of TensorBoard, so that a view can be shared.

export const KINDS = {
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
  kind: "terms", compare: "rows", ranges: "run", x: "step", smoothing: "0", share: "false",
  scale: "", split: "both", a: "", b: "", run: null, term: null,
};
const KEY = "p.joint_loss.";
// More runs are not shown at once unless the user asks for them.
const RUNS_AT_FIRST = 4;

export let state = {...DEFAULTS};
export let index = {runs: [], terms: [], values: []};

export function setIndex(found) {
  index = found;
}

// TensorBoard, or this window where another page embeds it.
function host() {
  try {
    void window.parent.location.hash;
    return window.parent;
  } catch {
    return window;
  }
}

// Returns whether the address holds another view than before.
export function loadState() {
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
  const isNew = JSON.stringify(found) !== JSON.stringify(state);
  state = found;
  return isNew;
}

export function changeState(changes) {
  state = {...state, ...changes};
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

export function shownRuns() {
  const names = index.runs.map((run) => run.name);
  if (state.run === null) return names.slice(-RUNS_AT_FIRST);
  return names.filter((name) => state.run.includes(name));
}

export function shownTerms() {
  return state.term === null ? index.terms : index.terms.filter((x) => state.term.includes(x));
}

// Whether the chosen runs have something to show in a figure.
export function hasData(kind) {
  const shown = shownRuns();
  if (kind === "pareto") return shown.length > 1;
  return index.runs.some((run) => shown.includes(run.name) && run.kinds.includes(kind));
}

export function isDark() {
  try {
    return window.parent.document.body.classList.contains("dark-mode");
  } catch {
    return window.matchMedia("(prefers-color-scheme: dark)").matches;
  }
}

// The request of the figure for a page of a width in pixels.
export function query(width) {
  const parts = new URLSearchParams();
  for (const run of shownRuns()) parts.append("run", run);
  if (state.term !== null) for (const term of shownTerms()) parts.append("term", term);
  for (const name of ["kind", "compare", "ranges", "x", "smoothing", "share", "scale", "a", "b"]) {
    if (state[name]) parts.append(name, state[name]);
  }
  if (state.split !== "both") parts.append("split", state.split);
  if (width < 760) parts.append("columns", "2");
  parts.append("theme", isDark() ? "dark" : "light");
  return parts.toString();
}
