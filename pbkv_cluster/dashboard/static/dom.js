// Builds elements. Text goes in as text only, so nothing that a client named can become markup.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

export const byId = (id) => document.getElementById(id);

// Replaces what is in a place, unless that would show the same: what has the focus or is selected stays so.
export function show(place, ...nodes) {
  const fresh = document.createElement("div");
  fresh.append(...nodes.flat(Infinity).filter(Boolean));
  if (fresh.innerHTML === place.innerHTML) return;
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(...fresh.childNodes);
  if (focused !== undefined) {
    for (const node of place.querySelectorAll("[data-key]")) if (node.dataset.key === focused) node.focus({ preventScroll: true });
  }
}

// A table: columns are [title, cell, options], and a cell is made of a row. On a phone each row becomes a card.
export function table(caption, columns, rows) {
  const cells = (row) =>
    columns.map(([title, cell, options = {}]) =>
      el("td", { class: options.number && "n", "data-label": title, "data-figure": options.figure?.(row) }, el("span", {}, cell(row))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", { class: columns.length > 4 && "cards" },
      el("caption", { class: "hidden" }, caption),
      el("thead", {}, el("tr", {}, columns.map(([title, , options = {}]) => el("th", { scope: "col", class: options.number && "n" }, title)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, cells(row))))));
}

export const empty = (text) => el("p", { class: "empty" }, text);

// A bar of parts: [name, class, size, text]. The parts are told in words beside it.
export function bar(label, parts, whole, options = {}) {
  return el("div", { class: `bar ${options.thin ? "thin" : ""}`, role: "img", "aria-label": `${label}: ${parts.map(([name, , , text]) => `${name} ${text}`).join(", ")}` },
    parts.map(([, kind, size]) => el("i", { class: kind, style: { width: `${whole > 0 ? (100 * size) / whole : 0}%` } })));
}

export const legend = (parts) =>
  el("ul", { class: "legend" }, parts.map(([name, kind, , text]) => el("li", {}, el("i", { class: kind }), `${name} `, el("b", {}, text))));
