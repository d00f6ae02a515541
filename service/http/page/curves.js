// Final loss against learning rate, one SVG per chart: lines are means over seeds, crosses are diverged cells.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [720, 360, 48, 12, 12, 44];

function node(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Ticks of a linear axis: about four round numbers.
function ticks(low, high) {
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const values = [];
  for (let i = Math.ceil(low / step); i * step <= high + 1e-9; i++) values.push(i * step);
  return values;
}

export const short = (number) => (number === null || number === undefined ? "–" : Number(number.toPrecision(4)).toString());

// The figure of one chart. `running` lists the running cells: {label, lr, val_loss}.
export function figure(chart, running) {
  const points = chart.curves.flatMap((curve) => curve.points);
  const live = running.filter((cell) => cell.val_loss !== null && Number.isFinite(cell.val_loss));
  const lrs = [...chart.curves.flatMap((curve) => curve.lr), ...live.map((cell) => cell.lr)];
  const losses = [...points.map((point) => point.loss), ...live.map((cell) => cell.val_loss)].filter((loss) => loss !== null);
  const [left, right] = [Math.log10(Math.min(...lrs)), Math.log10(Math.max(...lrs))];
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const pad = (high - low || 1) * 0.06;
  const x = (lr) => LEFT + ((Math.log10(lr) - left + (right === left ? 0.5 : 0)) / (right - left || 1)) * (WIDTH - LEFT - RIGHT - 16) + 8;
  const y = (loss) => TOP + ((high + pad - loss) / (high - low + 2 * pad)) * (HEIGHT - TOP - BOTTOM);
  const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Final loss against learning rate, ${chart.name}: ${points.length} cells` });
  for (const tick of ticks(low - pad, high + pad)) {
    svg.append(node("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
    svg.append(node("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  let last = -Infinity;
  for (const lr of [...new Set(lrs)].sort((a, b) => a - b)) {
    svg.append(node("line", { class: "axis", x1: x(lr), x2: x(lr), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 5 }));
    if (x(lr) - last < 52) continue;
    last = x(lr);
    svg.append(node("text", { x: x(lr), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, short(lr)));
  }
  svg.append(node("text", { x: WIDTH / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "learning rate (log) · final validation loss in nats · × diverged"));
  for (const curve of chart.curves) {
    const means = curve.lr.map((lr, i) => [lr, curve.mean[i]]).filter(([, mean]) => mean !== null);
    const d = means.map(([lr, mean], i) => `${i ? "L" : "M"}${x(lr).toFixed(1)} ${y(mean).toFixed(1)}`).join("");
    svg.append(node("path", { class: "curve", d: d, fill: "none", stroke: curve.color, "stroke-width": 2, "stroke-dasharray": curve.dash[1] ? curve.dash.join(" ") : "none" }));
    for (const point of curve.points) {
      if (point.loss === null) continue;
      const [px, py] = [x(point.lr), y(point.loss)];
      const mark = point.diverged
        ? node("path", { d: `M${px - 5} ${py - 5}l10 10m0 -10l-10 10`, stroke: curve.color, "stroke-width": 2 })
        : node("circle", { cx: px, cy: py, r: 4, fill: curve.color });
      mark.classList.add("point");
      mark.dataset.cell = point.cell;
      mark.append(node("title", {}, `${curve.name}, lr ${short(point.lr)}, seed ${point.seed}: ${point.diverged ? "diverged" : short(point.loss)}`));
      svg.append(mark);
    }
  }
  for (const cell of live) {
    const mark = node("circle", { class: "cell", cx: x(cell.lr), cy: y(cell.val_loss), r: 5 });
    mark.append(node("title", {}, `${cell.label}, running: ${short(cell.val_loss)}`));
    svg.append(mark);
  }
  const container = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = chart.name;
  const legend = document.createElement("ul");
  legend.className = "legend";
  for (const curve of chart.curves) {
    const item = document.createElement("li");
    const line = node("svg", { viewBox: "0 0 32 10", "aria-hidden": "true" });
    line.append(node("path", { d: "M0 5H32", stroke: curve.color, "stroke-width": 3, "stroke-dasharray": curve.dash[1] ? curve.dash.join(" ") : "none" }));
    item.append(line, curve.name);
    legend.append(item);
  }
  container.append(caption, svg, legend);
  return container;
}
