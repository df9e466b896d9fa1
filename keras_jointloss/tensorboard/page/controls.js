// The frame of the page: tabs, selectors, and the lists of runs and terms.

import {make} from "./dom.js";
import {KINDS, hasData, index, query, shownRuns, shownTerms, state} from "./state.js";

export const ui = {};
// Changes the state, and what depends on it.
let set;

function choice(name, label, options) {
  const select = make("select", {id: name, onchange: () => set({[name]: select.value})});
  for (const [value, text] of options) select.append(make("option", {value}, text));
  ui[name] = select;
  return make("label", {class: "choice", for: name}, make("span", {}, label), select);
}

export function build(change) {
  set = change;
  document.body.replaceChildren();
  document.documentElement.lang = "en";
  document.title = "Joint loss";
  ui.tabs = make("nav", {class: "kinds", role: "tablist", "aria-label": "Figure"});
  for (const [kind, [name]] of Object.entries(KINDS)) {
    ui.tabs.append(make("button", {
      role: "tab", "data-kind": kind, "aria-controls": "chart",
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
    choice("ranges", "y range", [["run", "of each run"], ["shared", "shared by all runs"]]),
    choice("x", "x axis", [["step", "step"], ["epoch", "epoch"], ["time", "time"]]),
    choice("scale", "y axis", [["", "automatic"], ["linear", "linear"], ["log", "logarithmic"]]),
    choice("a", "horizontal", [["", "first term"]]),
    choice("b", "vertical", [["", "second term"]]),
    make("label", {class: "choice", for: "smoothing"}, make("span", {}, "Smoothing"),
      make("span", {class: "range"}, ui.smoothing, ui.smoothingValue)));
  ui.runs = make("fieldset", {id: "runs"});
  ui.terms = make("fieldset", {id: "terms"});
  ui.hint = make("p", {class: "hint"});
  ui.csv = make("a", {class: "button", id: "csv", download: "joint_loss.csv"}, "Download CSV");
  ui.status = make("div", {id: "status", role: "status", "aria-live": "polite"});
  ui.notes = make("ul", {id: "notes"});
  ui.chart = make("div", {id: "chart", role: "tabpanel", "aria-label": "Figure"});
  ui.events = make("ul", {id: "events", "aria-label": "Events"});
  ui.table = make("div", {id: "table", tabindex: "0", role: "region", "aria-label": "Latest values"});
  ui.main = make("main", {},
    ui.tabs, ui.controls,
    make("div", {class: "line"}, ui.hint, ui.csv),
    ui.status, ui.notes, ui.chart, ui.events, ui.table);
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

export function showControls() {
  for (const tab of ui.tabs.children) {
    const {kind} = tab.dataset;
    const isShown = kind === state.kind;
    const isEmpty = index.runs.length > 0 && !hasData(kind);
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
    tab.classList.toggle("empty", isEmpty);
    tab.title = KINDS[kind][1] + (isEmpty ? " The chosen runs have no data for it." : "");
  }
  for (const name of ["share", "split", "compare", "ranges", "x", "scale", "smoothing"]) {
    ui[name].value = state[name];
  }
  ui.smoothingValue.value = state.smoothing;
  const isOfLines = !["cosines", "pareto"].includes(state.kind);
  const hasSeveral = isOfLines && shownRuns().length > 1;
  const used = {
    share: state.kind === "terms",
    split: ["terms", "losses", "readings"].includes(state.kind),
    compare: hasSeveral,
    ranges: hasSeveral && state.compare === "rows",
    x: state.kind !== "pareto",
    scale: state.kind !== "cosines",
    a: state.kind === "pareto",
    b: state.kind === "pareto",
    smoothing: isOfLines,
  };
  for (const [name, isUsed] of Object.entries(used)) ui[name].closest(".choice").hidden = !isUsed;
  ui.hint.textContent = KINDS[state.kind][1];
  ui.csv.href = "csv?" + query(ui.chart.clientWidth);
}

export function showLists(colors = {}) {
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
