// The table of the latest values, and the list of events.

import {make, number, percent, signs} from "./dom.js";

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
  const title = signs(faults.map(({reason}) => reason).join("\n\n"));
  return [make("span", {class: "mark", role: "img", tabindex: "0", title, "aria-label": title}, "!")];
}

export function showTable(place, rows) {
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
  place.replaceChildren(make("h2", {}, "Latest values"),
    make("table", {}, make("thead", {}, groups, head), body));
}

// What the marks in the figure stand for, for those who do not point on them.
export function showEvents(place, events) {
  place.replaceChildren(...events.map(({run, step, sentence}) => make(
    "li", {}, make("b", {}, `${run}, step ${step.toLocaleString("en")}:`), " ", signs(sentence))));
}
