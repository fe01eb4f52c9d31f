"use strict";
// Sorting, filters, folding of identical blocks, keys and large pictures. The page is complete
// without: what only works with a script is made or shown by it.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const table = one("#layers");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = all("tr", body);
  const articles = new Map(all("article.layer").map((article) => [article.id, article]));

  // ---- sorting: a button in each head that has something to sort by
  let sorted = null;
  const value = (row, column) => row.cells[column].dataset.v ?? "";
  const compare = (column) => (a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === "" || y === "") return (x === "") - (y === "");  // what is not known comes last
    const difference = Number(x) - Number(y);
    const order = Number.isNaN(difference) ? x.localeCompare(y, "en", { numeric: true }) : difference;
    return sorted.down ? -order : order;
  };
  const sort = (column) => {
    const down = sorted && sorted.column === column ? !sorted.down : column > 0;
    sorted = { column, down };
    all("th", table.tHead).forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    body.append(...[...rows].sort(compare(column)));
  };
  all("th", table.tHead).forEach((head, column) => {
    if (!rows.some((row) => "v" in row.cells[column].dataset)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });

  // ---- filters and folding
  const tools = one("#tools");
  const [search, kind, fold, told] = ["#search", "#kind", "#fold", "#told"].map(one);
  tools.hidden = false;
  const wanted = (row) =>
    row.textContent.toLowerCase().includes(search.value.trim().toLowerCase()) &&
    (kind.value === "all" || row.dataset.kinds.split(" ").includes(kind.value));
  const apply = () => {
    const seen = new Set();
    let shown = 0;
    for (const row of rows) {
      let show = wanted(row);
      if (show && fold.checked) {
        show = !seen.has(row.dataset.like);
        seen.add(row.dataset.like);
      }
      row.hidden = !show;
      const article = articles.get(row.dataset.id);
      if (article) article.hidden = !show;
      shown += show;
    }
    table.classList.toggle("folded", fold.checked);
    told.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
    one("#none").hidden = shown > 0;
  };
  for (const control of [search, kind, fold]) control.addEventListener("input", apply);

  // ---- a link to a layer shows it, whatever is filtered
  const arrive = () => {
    const article = articles.get(decodeURIComponent(location.hash.slice(1)));
    if (!article || !article.hidden) return;
    search.value = "";
    kind.value = "all";
    fold.checked = false;
    apply();
    article.scrollIntoView();
  };
  addEventListener("hashchange", arrive);
  arrive();

  // ---- large pictures
  const dialog = one("#large");
  const frame = one("#large-picture");
  let opener = null;
  const enlarge = (link) => {
    const figure = link.closest("figure");
    const picture = link.querySelector("img, svg").cloneNode(true);
    frame.replaceChildren(picture);
    one("#large-words").textContent = figure.querySelector("figcaption")?.textContent ?? "";
    opener = link;
    dialog.showModal();
  };
  for (const link of all("a.enlarge")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      enlarge(link);
    });
  }
  one("#large-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => opener?.focus());

  // ---- keys
  const step = (by) => {
    const shown = [...body.rows].filter((row) => !row.hidden);
    const at = shown.indexOf(document.activeElement?.closest("tr"));
    const next = at < 0 ? (by > 0 ? 0 : shown.length - 1) : at + by;
    shown[Math.max(0, Math.min(shown.length - 1, next))]?.querySelector("a")?.focus();
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "Escape" && typing) {
      search.value = "";
      apply();
      event.target.blur();
    } else if (typing) {
      return;
    } else if (event.key === "/") {
      event.preventDefault();
      search.focus();
    } else if (event.key === "j" || event.key === "k") {
      step(event.key === "j" ? 1 : -1);
    } else if (event.key === "t") {
      location.hash = "#layers";
    }
  });
})();
