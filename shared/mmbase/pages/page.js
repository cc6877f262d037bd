"use strict";
(() => {
  const root = document.documentElement;

  // The theme: the system's until the button says otherwise.
  const dark = () => (root.dataset.theme ||
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const toggle = document.getElementById("theme");
  const told = () => toggle.setAttribute("aria-pressed", String(dark()));
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* the page's own choice */ }
    told();
  });
  told();

  // Tables: a click on a heading sorts, another one the other way; equal rows keep their order.
  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const opposite = { ascending: "descending", descending: "ascending" };
      const order = opposite[head.getAttribute("aria-sort")] || head.dataset.first;
      heads.forEach((one) => one.setAttribute("aria-sort", one === head ? order : "none"));
      const towards = order === "ascending" ? 1 : -1;
      const keyed = [...body.rows].map((row) => [key(row, column), row]);
      // A cell without a number stands last either way.
      keyed.sort(([a], [b]) => typeof a === typeof b ? towards * compare(a, b) : compare(a, b));
      body.append(...keyed.map(([, row]) => row));
    }));
  }

  // Regions that scroll take the focus only where there is something to scroll.
  const regions = [...document.querySelectorAll(".scroll, .top nav")];
  const measure = () => regions.forEach((one) => {
    const wide = one.scrollWidth > one.clientWidth + 1;
    one.classList.toggle("wide", wide);
    if (wide) one.tabIndex = 0; else one.removeAttribute("tabindex");
  });
  new ResizeObserver(measure).observe(document.body);
  document.addEventListener("toggle", measure, true);
  measure();

  // Charts, each when it first has a width; `hidden` names the series that are switched off.
  const views = [], hidden = new Set();
  const options = { actions: false, renderer: "svg", defaultStyle: false, logLevel: 1, tooltip: { disableDefaultStyle: true } };
  const draw = async (figure) => {
    if (figure.dataset.drawn || !figure.clientWidth) return;
    figure.dataset.drawn = "begun";
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const { view } = await window.vegaEmbed(figure.querySelector(".plot"), spec, options);
    views.push(view);
    await apply(view);
    figure.dataset.drawn = "done";
  };
  const apply = async (view) => {
    const signals = view.getState({ signals: (name) => name === "hidden" }).signals;
    if ("hidden" in signals) await view.signal("hidden", [...hidden]).runAsync();
  };
  const charts = [...document.querySelectorAll("figure.chart")];
  const drawAll = async () => { for (const one of charts) await draw(one); };
  window.pageReady = drawAll();
  document.addEventListener("toggle", () => { window.pageReady = drawAll(); }, true);

  for (const button of document.querySelectorAll("button[data-series]")) {
    button.addEventListener("click", () => {
      const name = button.dataset.series, off = hidden.delete(name) || !hidden.add(name);
      button.setAttribute("aria-pressed", String(off));
      views.forEach(apply);
    });
  }

  // Buttons that copy what stands beside them.
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    });
  }

  // What is folded is printed, too.
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open])")) {
      one.open = true;
      one.dataset.printed = "";
    }
  });
  addEventListener("afterprint", () => {
    for (const one of document.querySelectorAll("details[data-printed]")) one.open = false;
  });
})();
