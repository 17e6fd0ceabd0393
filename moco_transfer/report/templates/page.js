"use strict";
// Sorting: a click, or Enter and Space on the focused head, sorts up, then down, then back to the order of the report.
const compare = (a, b) => {
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
    const sign = next === "descending" ? -1 : 1, key = (row) => row.cells[column].dataset.key;
    const rows = next === "none" ? original : [...original].sort((a, b) => {
      const [x, y] = [key(a), key(b)];  // what has no value stands last either way
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * compare(x, y);
    });
    body.append(...rows);
    const name = head.textContent.trim();
    document.getElementById("said").textContent = next === "none" ? "In the order of the report" : `Sorted by ${name}, ${next}`;
  }));
}
// A link to a run opens what it is folded into.
const unfold = () => {
  let node = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  const target = node;
  for (; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
// Theme: the system's, or the reader's choice, remembered where the browser lets a file remember.
const themes = ["auto", "light", "dark"], toggle = document.getElementById("theme");
const show = (theme) => { document.documentElement.dataset.theme = theme; toggle.textContent = `Theme: ${theme}`; };
const store = (theme) => {
  try { return theme ? localStorage.setItem("moco-transfer-theme", theme) : localStorage.getItem("moco-transfer-theme"); } catch { return null; }
};
show(themes.includes(store()) ? store() : "auto");
toggle.hidden = false;
toggle.addEventListener("click", () => {
  const theme = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length];
  show(theme);
  store(theme);
});
// While a matrix runs: the page reloads itself, with what the reader has opened, until it is paused.
const reload = document.getElementById("reload");
if (reload) {
  const folds = [...document.querySelectorAll("details")], key = "moco-transfer-watch";
  const kept = () => { try { return JSON.parse(sessionStorage.getItem(key)) || {}; } catch { return {}; } };
  const name = (fold) => fold.id || fold.querySelector("summary").textContent;
  const { open = [], closed = [], paused = false } = kept();
  for (const fold of folds) fold.open = !closed.includes(name(fold)) && (fold.open || open.includes(name(fold)));
  let on = !paused;
  const label = () => { reload.textContent = `Reload: ${on ? "on" : "off"}`; reload.setAttribute("aria-pressed", on); };
  const keep = () => {
    const names = (state) => folds.filter((fold) => fold.open === state).map(name);
    try { sessionStorage.setItem(key, JSON.stringify({ open: names(true), closed: names(false), paused: !on })); } catch { /* it reloads as written */ }
  };
  reload.hidden = false;
  label();
  reload.addEventListener("click", () => { on = !on; label(); keep(); });
  setInterval(() => { if (on && !document.hidden) { keep(); location.reload(); } }, 1000 * reload.dataset.seconds);
}
