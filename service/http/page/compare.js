// Several studies over each other: the charts of a report, and the tables of `oec diff`.

import { $, element, getJson, tableRow } from "/api.js";

let charts;  // the script that draws them, loaded once

function loadCharts() {
  charts ??= new Promise((resolve, reject) => {
    document.head.append(element("script", { src: "/vega.js", onload: resolve, onerror: () => reject(new Error("The script of the charts could not be loaded.")) }));
  });
  return charts;
}

// Vega interprets its expressions here: the page's policy allows no code from text, and no style elements.
const OPTIONS = { actions: false, renderer: "svg", ast: true, defaultStyle: false };

async function draw(holder, figure) {
  if (!window.vegaEmbed) return;
  const look = window.theme(figure.spec.config.legend, window.legendColumns(figure.spec, holder.clientWidth));
  await window.vegaEmbed(holder, { ...figure.spec, config: look }, { ...OPTIONS, tooltip: { disableDefaultStyle: true } });
}

function panel(figure) {
  const title = [figure.title, figure.view].filter(Boolean).join(", ");
  const holder = element("div", { className: "chart", role: "img", ariaLabel: `${title}. ${figure.caption}` });
  return [holder, element("figure", {}, element("figcaption", {}, element("h2", {}, title), element("p", { className: "soft" }, figure.caption)), holder)];
}

// One group of rows a curve, below its name.
function table({ before, after, texts }) {
  const heads = ["Measure", before, after, "Change", "Verdict"];
  const isLeft = (i) => i === 0 || i === heads.length - 1;
  const head = element("tr", {}, ...heads.map((text, i) => element("th", { scope: "col", className: isLeft(i) ? "left" : "" }, text)));
  const groups = [...new Set(texts.map((row) => row.curve))].map((curve) => {
    const rows = texts.filter((row) => row.curve === curve).map((row) => {
      const shown = tableRow(0, row.before, row.after, row.change, row.verdict);
      shown.lastChild.className = "left verdict";
      shown.prepend(element("th", { scope: "row", className: "left" }, row.measure));
      return shown;
    });
    return element("tbody", {}, element("tr", {}, element("th", { scope: "rowgroup", colSpan: heads.length, className: "left curve" }, curve)), ...rows);
  });
  const caption = element("caption", {}, "LRS and best loss change by a difference in nats, ± half of its 95% interval over seeds; learning rates change by a factor.");
  const region = element("div", { className: "wide", role: "region", ariaLabel: `Table of ${before} to ${after}`, tabIndex: 0 });
  region.append(element("table", { className: "comparison" }, caption, element("thead", {}, head), ...groups));
  return region;
}

export async function showComparison(names) {
  const section = $("#compare");
  section.querySelector("h1").textContent = `${names.slice(1).join(", ")} against ${names[0]}`;
  const content = section.querySelector("div");
  section.ariaBusy = "true";
  content.replaceChildren(element("p", { className: "soft" }, "Comparing …"));
  const query = names.map((name) => `study=${encodeURIComponent(name)}`).join("&");
  let found;
  try {
    [found] = await Promise.all([getJson(`/api/v1/compare?${query}`), loadCharts()]);
  } catch (error) {
    content.replaceChildren();
    throw error;
  }
  const panels = found.figures.map((figure) => [figure, ...panel(figure)]);
  const comparisons = found.comparisons.flatMap((one) => [
    element("h2", {}, `${one.before} to ${one.after}`),
    element("ul", {}, ...one.sentences.map((sentence) => element("li", {}, sentence))),
    ...(one.texts.length ? [table(one)] : []),
  ]);
  const grid = element("div", { className: found.figures.length > 2 ? "charts" : "" }, ...panels.map(([, , figure]) => figure));
  const missing = window.vegaEmbed ? [] : [element("p", { className: "soft" }, "This service has no package that draws charts (pip install vl-convert-python).")];
  content.replaceChildren(...(panels.length ? [...missing, grid] : [element("p", {}, "No cells have ended yet.")]), ...comparisons);
  const drawAll = () => Promise.all(panels.map(([figure, holder]) => draw(holder, figure)));
  await drawAll();
  section.ariaBusy = "false";

  let width = innerWidth;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const onResize = () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } };
  dark.addEventListener("change", drawAll);
  addEventListener("resize", onResize);
  return () => {
    dark.removeEventListener("change", drawAll);
    removeEventListener("resize", onResize);
  };
}
