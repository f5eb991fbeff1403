"use strict";
(() => {
  const table = document.getElementById("results");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const search = document.getElementById("search");
  const count = document.getElementById("count");
  const phone = document.getElementById("sort");
  const selects = [...document.querySelectorAll("select[data-filter]")];
  const checks = [...document.querySelectorAll("input[data-only]")];

  const valueOf = (row, column) => row.cells[column].dataset.v;
  const before = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };

  const sortBy = (column, direction) => {
    const sign = direction === "descending" ? -1 : 1;
    const sorted = rows
      .map((row, at) => ({ row, at, value: valueOf(row, column) }))
      .sort((a, b) => {
        if (!a.value || !b.value) return Number(!a.value) - Number(!b.value) || a.at - b.at;
        return sign * before(a.value, b.value) || a.at - b.at; // empty last, ties as they were
      });
    body.append(...sorted.map((one) => one.row));
    heads.forEach((head, at) => head.setAttribute("aria-sort", at === column ? direction : "none"));
    phone.value = heads[column].querySelector("button").dataset.sort;
  };

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits =
        words.every((word) => row.dataset.words.includes(word)) &&
        selects.every((one) => !one.value || row.dataset[one.dataset.filter] === one.value) &&
        checks.every((one) => !one.checked || row.dataset[one.dataset.only] === "1");
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };

  heads.forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const other = now === "ascending" ? "descending" : "ascending";
      sortBy(column, now === "none" ? head.dataset.first : other);
    })
  );
  phone.addEventListener("change", () => {
    const column = heads.findIndex((h) => h.querySelector("button").dataset.sort === phone.value);
    sortBy(column, heads[column].dataset.first);
  });
  search.addEventListener("input", filter);
  [...selects, ...checks].forEach((one) => one.addEventListener("change", filter));
  document.getElementById("reset").addEventListener("click", () => {
    search.value = "";
    selects.forEach((one) => (one.value = ""));
    checks.forEach((one) => (one.checked = false));
    heads.forEach((head) => head.setAttribute("aria-sort", "none"));
    body.append(...rows);
    phone.value = "task";
    filter();
  });
  filter();

  const openTarget = () => {
    const study = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (study && study.tagName === "DETAILS") {
      study.open = true;
      study.scrollIntoView();
    }
  };
  addEventListener("hashchange", openTarget);
  openTarget();
  const all = document.getElementById("open-all");
  all.addEventListener("click", () => {
    const open = all.textContent === "Open all";
    document.querySelectorAll("details.study").forEach((one) => (one.open = open));
    all.textContent = open ? "Close all" : "Open all";
  });
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  });
})();
