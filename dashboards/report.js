"use strict";
const [panels, steps, runs, columns, filters, weights] = ["panels", "steps", "runs", "columns", "filters", "weights"].map((id) => JSON.parse(document.getElementById(id).textContent));
const dark = matchMedia("(prefers-color-scheme: dark)");
const [view, published, cell, colorBy, facetBy] = ["view", "published", "cell", "color", "facet"].map((id) => document.getElementById(id));
const main = document.querySelector("main");
const MAX_SVG_MARKS = 3000;  // a chart with more marks is drawn on a canvas

function column(index) {
  const stored = columns[index];
  return Array.isArray(stored) ? stored : (columns[index] = stored.indices.map((i) => stored.values[i]));
}

function rows(table) {
  const entries = Object.entries(table).map(([name, index]) => [name, column(index)]);
  return entries.length ? entries[0][1].map((_, i) => Object.fromEntries(entries.map(([name, values]) => [name, values[i]]))) : [];
}

function figureOf(holder) {
  const figures = panels[holder.dataset.panel];
  return figures[""] || figures[view ? view.value : Object.keys(figures)[0]];
}

// filters: by name (gamma, or a factor), the value of each line, as text. A line without a value is always shown.
const selects = [...document.querySelectorAll("[data-filter]")];
const COLORS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"];

function selection() {
  return Object.fromEntries(selects.filter((each) => each.value).map((each) => [each.dataset.filter, each.value]));
}

function isShown(label, chosen) {
  return Object.entries(chosen).every(([name, value]) => !Object.hasOwn(filters[name], label) || filters[name][label] === value);
}

function lineScales(spec, name) {
  // The Vega-Lite scales whose domain includes lines with a value of this filter.
  const all = spec.layer.flatMap((layer) => Object.values(layer.encoding || {})).map((channel) => channel.scale);
  return all.filter((scale) => scale && Array.isArray(scale.domain) && scale.domain.some((label) => Object.hasOwn(filters[name], label)));
}

function applicable(figure, chosen) {
  return Object.fromEntries(Object.entries(chosen).filter(([name]) => lineScales(figure.spec, name).length));
}

function filterLegends(spec, chosen) {
  // Legends and axes keep only the lines that are shown; each line keeps its style.
  const filtered = structuredClone(spec);
  for (const scale of new Set(Object.keys(chosen).flatMap((name) => lineScales(filtered, name)))) {
    const kept = scale.domain.map((label) => isShown(label, chosen));
    for (const part of ["domain", "range"]) if (scale[part]) scale[part] = scale[part].filter((_, i) => kept[i]);
  }
  return filtered;
}

function recolor(spec, name) {
  // Gives all lines with one value of a filter one color.
  const values = [...new Set(Object.values(filters[name]))], recolored = structuredClone(spec);
  for (const layer of recolored.layer) {
    const scale = layer.encoding?.color?.scale;
    if (!scale || !lineScales({ layer: [layer] }, name).includes(scale)) continue;
    scale.range = scale.domain.map((label, i) => (Object.hasOwn(filters[name], label) ? COLORS[values.indexOf(filters[name][label]) % COLORS.length] : scale.range[i]));
  }
  return recolored;
}

function updateCaption(holder) {
  const figure = figureOf(holder);
  holder.hidden = !figure;
  if (!figure) return;
  const shown = Object.entries(applicable(figure, selection())).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`);
  const caption = figure.caption + (shown.length ? ` Only ${shown.join(" and ")} is shown.` : "");
  holder.querySelector("figcaption p").textContent = caption;
  holder.querySelector(".chart").setAttribute("aria-label", holder.dataset.panel + ". " + caption);
}

function draw(holder) {
  const figure = figureOf(holder);
  if (!figure) return null;
  const chart = holder.querySelector(".chart");
  const chosen = applicable(figure, selection()), name = facetBy ? facetBy.value : "";
  if (!name || chosen[name] || !lineScales(figure.spec, name).length) return drawLines(chart, figure, chosen);
  const values = [...new Set(Object.values(filters[name]))];
  const facets = values.map((value) => {
    const facet = document.createElement("div");
    facet.innerHTML = "<h4></h4><div class=chart></div>";
    facet.firstChild.textContent = `${name.replaceAll("_", " ")} ${value}`;
    return facet;
  });
  const grid = document.createElement("div");
  grid.className = "pair";
  grid.replaceChildren(...facets);
  chart.replaceChildren(grid);
  return Promise.all(facets.map((facet, i) => drawLines(facet.lastChild, figure, { ...chosen, [name]: values[i] })));
}

function drawLines(chart, figure, chosen) {
  const colored = colorBy && colorBy.value ? recolor(figure.spec, colorBy.value) : figure.spec;
  const spec = Object.keys(chosen).length ? filterLegends(colored, chosen) : colored;
  const layers = published && published.checked ? spec.layer.concat(figure.overlay) : spec.layer;
  const tables = Object.fromEntries(Object.entries(figure.data).map(([name, table]) => [name, rows(table).filter((row) => isShown(row.label, chosen))]));
  const marks = Math.max(...Object.values(tables).map((table) => table.length));
  return embed(chart, { ...spec, datasets: tables, layer: layers, config: theme(spec.config.legend, legendColumns(figure.spec, chart.clientWidth)) }, marks);
}

function embed(chart, spec, marks) {
  if (!window.vegaEmbed) return null;  // the page was written without the figure package
  const renderer = marks > MAX_SVG_MARKS ? "canvas" : "svg";
  return vegaEmbed(chart, spec, { actions: false, renderer: renderer, tooltip: { theme: dark.matches ? "dark" : "light" }, loader: { target: "_blank" } });
}

let drawing = 0;

async function drawAll() {
  // Charts nearest to the viewport come first. The page stays responsive, because it yields after each chart.
  const current = ++drawing;
  main.ariaBusy = "true";
  holders.forEach(updateCaption);
  fillCells();
  const distances = new Map(holders.map((holder) => [holder, Math.abs(holder.getBoundingClientRect().top)]));
  for (const holder of [...holders].sort((a, b) => distances.get(a) - distances.get(b))) {
    if (current !== drawing) return;
    await draw(holder);
    await new Promise((resolve) => setTimeout(resolve));
  }
  if (current !== drawing) return;
  drawCell();
  main.ariaBusy = "false";
}

function fillCells() {
  if (!cell) return;
  const inView = steps.cells.filter((each) => !view || each.view === view.value);
  const selected = cell.value || restored.cell;
  cell.replaceChildren(...inView.map((each) => new Option(each.label, each.cell, false, each.cell === selected)));
}

function drawCell() {
  if (!cell) return;
  const indices = steps.values[cell.value] || {};
  const { url } = steps.cells.find((each) => each.cell === cell.value) || {};
  const link = document.getElementById("run");
  link.hidden = !url;
  if (url) link.href = url;
  document.querySelectorAll("[data-metric]").forEach((holder) => {
    const index = indices[holder.dataset.metric];
    holder.hidden = index === undefined;
    if (holder.hidden) return;
    const values = column(index);
    const points = column(indices.step).map((step, i) => ({ step: step, value: values[i] })).filter((point) => point.value !== null);
    embed(holder.querySelector(".chart"), { ...steps.spec, data: { values: points }, config: theme({}, 1) }, points.length);
  });
  document.querySelectorAll("[data-weights]").forEach((holder) => {
    const figure = weights[holder.dataset.weights];
    const tables = figure.cells[cell.value];
    holder.hidden = !tables;
    if (holder.hidden) return;
    const datasets = Object.fromEntries(Object.entries(tables).map(([name, table]) => [name, rows(table)]));
    embed(holder.querySelector(".chart"), { ...figure.spec, height: 200, datasets: datasets, config: theme(figure.spec.config.legend, 2) }, 0);
  });
}

const listing = rows(runs);
const [allRuns, more] = [document.getElementById("all-runs"), document.getElementById("more")];
const LEFT = new Set(["cell", "scale", "method", "state"]);

function addRuns() {
  const body = allRuns.querySelector("tbody");
  const count = body.rows.length;
  for (const run of listing.slice(count, count + 200)) {
    const row = body.insertRow();
    for (const [name, text] of Object.entries(run)) {
      const entry = row.insertCell();
      entry.className = LEFT.has(name) ? "left" : "";
      (name === "cell" ? entry.appendChild(document.createElement("code")) : entry).textContent = text;
    }
  }
  const remaining = listing.length - body.rows.length;
  more.hidden = !remaining;
  more.textContent = `Show ${Math.min(remaining, 200)} more of ${remaining}`;
}

allRuns.addEventListener("toggle", () => { if (allRuns.open && !allRuns.querySelector("tbody").rows.length) addRuns(); });
more.addEventListener("click", addRuns);

const holders = [...document.querySelectorAll("[data-panel]")];
const restored = history.state || {};  // the state of the page before it reloaded
for (const select of [view, colorBy, facetBy, ...selects]) {
  const value = select && restored[select.id];
  if (select && [...select.options].some((option) => option.value === value)) select.value = value;
}
if (published) published.checked = restored.published;
if (restored.allRuns) allRuns.open = true;
let width = innerWidth;
drawAll().then(() => { if (restored.scroll) scrollTo(0, restored.scroll); });
{% if refresh_s %}
setTimeout(() => {
  const choices = Object.fromEntries([view, cell, colorBy, facetBy, ...selects].filter(Boolean).map((select) => [select.id, select.value]));
  choices.published = published?.checked;
  history.replaceState({ ...choices, allRuns: allRuns.open, scroll: scrollY }, "");
  location.reload();
}, {{ 1000 * refresh_s }});
{% endif %}
dark.addEventListener("change", drawAll);
for (const control of [view, published, colorBy, facetBy, ...selects]) if (control) control.addEventListener("change", drawAll);
if (cell) cell.addEventListener("change", drawCell);
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
