// The page of the "Joint loss" tab: controls, a figure that the server has made, and a table.

import {build, showControls, showLists, ui} from "./controls.js";
import {make} from "./dom.js";
import {
  changeState, index, isDark, loadState, query, setIndex, shownRuns, shownTerms, state,
} from "./state.js";
import {showEvents, showTable} from "./table.js";

let latest = 0;
let reloads = 0;
let shownRows = "";
let shownAxes = "";

function set(changes) {
  changeState(changes);
  showControls();
  refresh();
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

function say(text, isError = false) {
  ui.status.className = isError ? "error" : "";
  ui.status.textContent = text;
}

function clearChart() {
  if (window.Plotly && ui.chart.data) window.Plotly.purge(ui.chart);
  ui.chart.style.height = "";
  for (const place of [ui.chart, ui.notes, ui.events]) place.replaceChildren();
  shownAxes = "";
}

function clearAll() {
  clearChart();
  ui.table.replaceChildren();
  shownRows = "";
}

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
    say(`Choose a ${shownRuns().length ? "term" : "run"} in the list “Runs and terms”.`);
    return;
  }
  const isFirst = !ui.chart.data;
  if (isFirst) say("Loading …");
  // Events depend on all that the table does, and the first figure does not wait for them.
  if (index.plotly) await drawFigure(request, !isFirst);
  else say(`The figures need Plotly. Install it beside TensorBoard, then start it again: ${index.install}`);
  if (request === latest) await drawTable(request);
  if (request === latest && isFirst && ui.chart.data) await drawFigure(request, true);
}

async function drawTable(request) {
  const rows = JSON.stringify([reloads, shownRuns(), shownTerms()]);
  if (rows === shownRows) return;
  const table = await ask("table?" + query(ui.chart.clientWidth));
  if (request !== latest) return;
  showTable(ui.table, table.rows);
  shownRows = rows;
}

async function drawFigure(request, hasEvents) {
  const path = `figure?${query(ui.chart.clientWidth)}&events=${hasEvents}`;
  const [answer] = await Promise.all([ask(path), loadPlotly()]);
  if (request !== latest) return;
  showLists(answer.colors);
  if (answer.figure.message) {
    clearChart();
    say(answer.figure.message);
  } else {
    await drawChart(answer.figure);
    showEvents(ui.events, answer.figure.layout.meta?.events ?? []);
    say("");
    ui.main.dataset.first ??= String(performance.now());
  }
  ui.notes.replaceChildren(...answer.notes.map((note) => make("li", {}, note)));
}

async function drawChart({data, layout}) {
  // Plotly keeps ranges of axes that other ones follow now, unless the figure is made anew.
  const axes = JSON.stringify(Object.entries(layout)
    .filter(([name]) => name.includes("axis")).map(([name, axis]) => [name, axis.matches]));
  const way = axes === shownAxes && ui.chart.data ? "react" : "newPlot";
  shownAxes = axes;
  ui.chart.style.height = `${layout.height}px`;
  await window.Plotly[way](ui.chart, data, layout, {
    responsive: true, displaylogo: false,
    toImageButtonOptions: {filename: `joint_loss_${state.kind}`, scale: 2},
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
  });
}

async function reload() {
  try {
    setIndex(await ask("runs"));
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
      if (!loadState()) return;
      showLists();
      showControls();
      refresh();
    });
  } catch { /* Another page embeds TensorBoard. */ }
}

export async function render() {
  document.head.append(make("link", {rel: "stylesheet", href: "page.css"}));
  loadState();
  build(set);
  theme();
  showControls();
  say("Loading …");
  followTensorBoard();
  await reload();
}
