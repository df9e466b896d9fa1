// Elements and numbers. Names of runs and terms reach the document as text nodes only.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Writes the minus of numbers as the figures do, and leaves the hyphens of names.
export function signs(text) {
  return text.replace(/(?<=^|[\s(=]|\de)-(?=\d)/g, "\u2212");
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return signs(size !== 0 && (size < 0.001 || size >= 1e5)
    ? value.toExponential(2) : value.toFixed(4));
}

export function percent(value, sign = false) {
  if (value === null || value === undefined) return "–";
  return signs((sign && value > 0 ? "+" : "") + (100 * value).toFixed(1) + " %");
}
