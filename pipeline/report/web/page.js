"use strict";
// Draws the charts when they come into view (Plotly itself is compiled after the page stands: it takes a second), pages through the artefacts, and filters both by model and kind.
(() => {
  const byId = (id) => document.getElementById(id);
  const parsed = (id) => JSON.parse(byId(id).textContent);
  const [files, allRows] = [parsed("all-files"), parsed("all-rows")];
  const [model, kind, search] = [byId("model"), byId("kind"), byId("search")];
  const PAGE = 100;
  let first = 0;

  // ---- charts
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const theme = () => {
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
    return { ink: colour("--ink"), axis };
  };
  const fits = (meta) => (!model.value || !meta.model || meta.model === model.value || meta.model === "Tyukin et al.")
    && (!kind.value || !meta.kind || meta.kind === kind.value || meta.kind === "base");
  const layoutFor = (figure) => {
    const { ink, axis } = theme();
    const many = figure.data.length > 16;
    return {
      showlegend: !many && figure.data.length > 1, ...figure.layout,
      xaxis: { ...axis, ...figure.layout.xaxis }, yaxis: { ...axis, ...figure.layout.yaxis },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13 },
      margin: { l: 50, r: 15, t: 34, b: 45 }, legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: ink },
      uirevision: "kept",
    };
  };
  const traces = (figure) => figure.data.map((trace) => ({ ...trace, visible: fits(trace.meta || {}) }));
  const config = { responsive: true, displaylogo: false };
  const drawn = new Set();
  const figures = new Map();
  const figureOf = (place) => {
    const name = place.dataset.chart;
    if (!figures.has(name)) figures.set(name, parsed(`data-${name}`));
    return figures.get(name);
  };
  const draw = (place) => {
    const figure = figureOf(place);
    Plotly.react(place, traces(figure), layoutFor(figure), config);
    if (!drawn.has(place)) {
      drawn.add(place);
      place.on("plotly_click", (event) => {
        const file = files[event.points[0].customdata];
        if (file) window.open(file, "_blank", "noopener");
      });
    }
  };
  const usesWebGL = (place) => figureOf(place).data.some((trace) => trace.type === "scattergl");
  // One chart at a time: what has been drawn is seen before the next is begun, and what was scrolled past is not drawn.
  const wanted = new Set();
  let drawing = false;
  const drawNext = () => {
    const [place] = wanted;
    drawing = place !== undefined;
    if (!drawing) return;
    wanted.delete(place);
    draw(place);
    requestAnimationFrame(() => setTimeout(drawNext, 0));
  };
  const near = new IntersectionObserver((entries) => {
    entries.forEach(({ target, isIntersecting }) => wanted[isIntersecting && !drawn.has(target) ? "add" : "delete"](target));
    if (!drawing) drawNext();
  }, { rootMargin: "100px" });
  // A browser holds about 16 WebGL contexts: what is far away gives its own back.
  const far = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    if (!isIntersecting && drawn.has(target) && usesWebGL(target)) { Plotly.purge(target); drawn.delete(target); }
  }), { rootMargin: "2000px" });
  const begin = () => {
    const script = document.createElement("script");
    script.textContent = byId("plotly").textContent;
    document.head.append(script);
    byId("plotly").remove();
    document.querySelectorAll("[data-chart]").forEach((place) => { near.observe(place); far.observe(place); });
  };
  requestAnimationFrame(() => setTimeout(begin, 0));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));

  // ---- the table of artefacts
  const body = document.querySelector("#rows tbody");
  const chosen = () => {
    const words = search.value.toLowerCase();
    return allRows.filter((row) => (!model.value || row[0] === model.value) && (!kind.value || row[2] === kind.value)
      && (!words || `${row[0]} ${row[1]}`.toLowerCase().includes(words)));
  };
  const cell = (text, head) => {
    const made = document.createElement(head ? "th" : "td");
    if (head) made.scope = "row";
    made.textContent = text;
    return made;
  };
  const links = (items) => {
    const made = document.createElement("td");
    for (const [text, place, where, note] of items) {
      const file = files[place];
      const line = document.createElement("div");
      const part = document.createElement(file ? "a" : "span");
      part.textContent = text;
      if (file) part.href = file; else line.className = "gap";
      if (where) part.title = where;
      line.append(part);
      if (note) {
        const small = document.createElement("small");
        small.textContent = note;
        line.append(small);
      }
      made.append(line);
    }
    return made;
  };
  const list = () => {
    const rows = chosen();
    first = Math.min(first, Math.max(0, Math.floor((rows.length - 1) / PAGE) * PAGE));
    body.replaceChildren(...rows.slice(first, first + PAGE).map((row) => {
      const made = document.createElement("tr");
      made.append(cell(row[0]), cell(row[1], true), cell(row[2]), cell(row[3]), links(row[4]), links(row[5]), links(row[6]));
      return made;
    }));
    const last = Math.min(first + PAGE, rows.length);
    byId("count").textContent = rows.length ? `${first + 1}–${last} of ${rows.length}` : "none fits the filter";
    byId("back").disabled = first === 0;
    byId("next").disabled = last >= rows.length;
  };
  byId("back").addEventListener("click", () => { first -= PAGE; list(); });
  byId("next").addEventListener("click", () => { first += PAGE; list(); });
  search.addEventListener("input", () => { first = 0; list(); });

  // ---- the filter
  const marked = document.querySelectorAll("[data-model]");
  const filter = () => {
    first = 0;
    for (const one of marked) {
      const { model: its, kind: sort } = one.dataset;
      one.hidden = Boolean((model.value && its !== model.value) || (kind.value && sort && sort !== kind.value));
    }
    drawn.forEach(draw);
    list();
  };
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  model.addEventListener("change", filter);
  kind.addEventListener("change", filter);
  filter();  // a browser may have kept what was chosen before a reload
})();
