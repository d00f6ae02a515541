// The controls of a study that are more than a field: lists to choose from, methods as rows, and grids of numbers.

import { element } from "/api.js";
import { labeled, parseList, same, textInput } from "/fields.js";

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

// A group of controls with the place of an error that concerns all of them.
function section(id, title, hint, ...nodes) {
  const problem = element("p", { className: "problem", id: `${id}-problem` });
  const description = element("p", { className: "hint", id: `${id}-hint` }, hint);
  const node = element("fieldset", { id: `${id}-group` }, element("legend", {}, title), description, problem, ...nodes);
  node.setAttribute("aria-describedby", `${description.id} ${problem.id}`);
  return { node: node, problem: problem };
}

// Checkboxes: one for each of `names`, each with a description that can change.
function checklist(path, title, hint, names, preset) {
  const boxes = names.map((name) => element("input", { type: "checkbox", value: name, id: `field-${path}-${name}` }));
  const abouts = names.map(() => element("span", { className: "soft" }));
  const list = element("div", { className: "choices" }, ...boxes.map((box, i) => element("label", { className: "choice" }, box, element("span", {}, element("span", {}, names[i]), " ", abouts[i]))));
  const { node, problem } = section(`field-${path}`, title, hint, list);
  boxes.forEach((box) => box.setAttribute("aria-describedby", problem.id));
  const fill = (value) => boxes.forEach((box) => { box.checked = (value ?? preset).includes(box.value); });
  fill(undefined);
  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.value);
  const value = () => (same(chosen(), preset) ? undefined : chosen());
  const describe = (about) => abouts.forEach((span, i) => { span.textContent = about(names[i]); });
  return { path: path, nodes: [node], value: value, fill: fill, chosen: chosen, describe: describe, target: () => ({ input: boxes[0], problem: problem }) };
}

// `control.describe(name => text)` updates the sizes, which depend on the vocabulary.
export function createScales(scales) {
  const control = checklist("scales", "Scales (required)", "Parameters with the vocabulary of this study, blocks and width.", scales.map((scale) => scale.name), []);
  const shapes = Object.fromEntries(scales.map((scale) => [scale.name, `${scale.blocks} blocks × ${scale.width}`]));
  return { ...control, showSizes: (parameters) => control.describe((name) => `${compact.format(parameters[name])} · ${shapes[name]}`) };
}

// Folded, because most studies have the default norm.
export function createNorms(norms, preset) {
  const control = checklist("attention_norms", "Attention norms", "Every method is tried with each.", norms.map((norm) => norm.name), preset);
  const summaries = Object.fromEntries(norms.map((norm) => [norm.name, norm.summary]));
  control.describe((name) => summaries[name]);
  const changed = element("span", { className: "soft" });
  const details = element("details", { className: "group" }, element("summary", {}, "Attention norms ", changed), ...control.nodes);
  const value = () => { changed.textContent = control.chosen().join(", ") || "none chosen"; return control.value(); };
  return { ...control, nodes: [details], value: value };
}

let rowsMade = 0;

function createRow(methods, onRemove) {
  const id = `field-method-${++rowsMade}`;
  const select = element("select", { id: id }, ...methods.map((method) => new Option(method.name)));
  const gammas = textInput(`${id}-gamma`, "decimal");
  const remove = element("button", { type: "button", className: "plain" }, "Remove");
  const [choice, gamma] = [labeled("Method", select), labeled("gamma", gammas)];
  const label = gamma.node.querySelector("label");
  const method = () => methods.find((one) => one.name === select.value);
  const show = () => {
    const { symbol, default_gamma: preset, summary, source, name } = method();
    choice.node.querySelector(".hint").textContent = `${summary} · ${source}`;
    gamma.node.hidden = symbol === null;
    gamma.node.querySelector(".hint").textContent = `Values of ${symbol}, separated by commas; if empty, ${preset}.`;
    label.textContent = symbol;
    gammas.setAttribute("aria-label", `${symbol} of ${name}`);
    remove.ariaLabel = `Remove ${name}`;
  };
  const choose = () => {
    gammas.value = method().default_gamma ?? "";
    show();
  };
  select.addEventListener("change", choose);
  const node = element("li", { className: "row" }, choice.node, gamma.node, remove);
  const row = { node: node, select: select, remove: remove };
  remove.addEventListener("click", () => onRemove(row));
  row.fill = ({ method: name, gamma: values }) => {
    select.value = name;
    gammas.value = values ? values.join(", ") : "";
    show();
  };
  row.choose = (name) => { select.value = name; choose(); };
  row.value = () => ({ method: select.value, ...(method().symbol !== null && gammas.value.trim() ? { gamma: parseList(gammas.value) } : {}) });
  row.target = ([field]) => (field === "gamma" && !gamma.node.hidden ? { input: gammas, problem: gamma.problem } : { input: select, problem: choice.problem });
  return row;
}

export function createMethods(methods, onChange) {
  let rows = [];
  const list = element("ul", { className: "rows" });
  const add = element("button", { type: "button", className: "plain", id: "add-method" }, "Add a method");
  const { node, problem } = section("field-methods", "Methods (required)", "Every combination of scale, attention norm, method and gamma is a curve.", list, add);
  add.setAttribute("aria-describedby", problem.id);
  const isFree = (name) => !rows.some((row) => row.select.value === name);
  const offerFree = () => {
    add.disabled = rows.length === methods.length;
    for (const row of rows) for (const option of row.select.options) option.disabled = option.value !== row.select.value && !isFree(option.value);
  };
  const show = () => {
    list.replaceChildren(...rows.map((row) => row.node));
    offerFree();
  };
  const removeRow = (row) => {
    const i = rows.indexOf(row);
    rows = rows.filter((other) => other !== row);
    show();
    (rows[Math.min(i, rows.length - 1)]?.remove || add).focus();
    onChange();
  };
  add.addEventListener("click", () => {
    const row = createRow(methods, removeRow);
    row.choose(methods.find((method) => isFree(method.name)).name);
    rows.push(row);
    show();
    row.select.focus();
    onChange();
  });
  node.addEventListener("change", offerFree);
  const fill = (value = [{ method: methods[0].name }]) => {
    rows = value.map((choice) => { const row = createRow(methods, removeRow); row.fill(choice); return row; });
    show();
  };
  fill();
  const target = ([index, ...rest]) => rows[Number(index)]?.target(rest) || { input: rows[0]?.select || add, problem: problem };
  return { path: "methods", nodes: [node], value: () => rows.map((row) => row.value()), fill: fill, target: target };
}

// `count` values from `low` to `high`, evenly spaced on a log axis; those between the ends have `digits` digits.
export function logGrid(low, high, count, digits) {
  if (count === 1) return [low];
  const between = (i) => Number((low * (high / low) ** (i / (count - 1))).toPrecision(digits));
  return Array.from({ length: count }, (_, i) => (i === 0 ? low : i === count - 1 ? high : between(i)));
}

const MAX_COUNT = 1000;
const isCount = (number) => Number.isInteger(number) && number >= 1 && number <= MAX_COUNT;

// Numbers that are drawn from a few others, `parts`, into a list that can be edited.
function createList(path, title, hint, parts, draw, describe, preset) {
  const inputs = parts.map(([name]) => textInput(`field-${path}-${name}`, "decimal"));
  const values = textInput(`field-${path}`, "decimal");
  const list = labeled("Values", values, "Separate values with commas.");
  const row = element("div", { className: "row" }, ...parts.map(([, label], i) => labeled(label, inputs[i]).node), list.node);
  const { node } = section(`field-${path}-all`, title, hint, row);
  const redraw = () => {
    const drawn = draw(inputs.map((input) => Number(input.value)));
    if (drawn) values.value = drawn.join(", ");
  };
  const showParts = () => describe(parseList(values.value)).forEach((text, i) => { inputs[i].value = text; });
  inputs.forEach((input) => input.addEventListener("input", redraw));
  values.addEventListener("input", showParts);
  const fill = (value = preset) => { values.value = (value || []).join(", "); showParts(); };
  fill();
  const value = () => {
    const found = parseList(values.value);
    return !found.length || same(found, preset) ? undefined : found;
  };
  return { path: path, nodes: [node], value: value, fill: fill, target: () => ({ input: values, problem: list.problem }) };
}

export function createLrs(digits) {
  const draw = ([low, high, count]) => (low > 0 && (high > low || count === 1) && isCount(count) ? logGrid(low, high, count, digits) : undefined);
  const describe = (lrs) => (lrs.length ? [lrs[0], lrs.at(-1), lrs.length] : ["", "", ""]);
  const parts = [["low", "Lowest"], ["high", "Highest"], ["count", "How many"]];
  return createList("lrs", "Learning rates (required)", "The grid of every curve: values from the lowest to the highest, evenly spaced on a log axis. You can edit them.", parts, draw, describe);
}

export function createSeeds(preset) {
  const draw = ([count]) => (isCount(count) ? Array.from({ length: count }, (_, i) => i + 1) : undefined);
  return createList("seeds", "Seeds", "Every cell is run once per seed. Several seeds give intervals.", [["count", "How many"]], draw, (seeds) => [seeds.length || ""], preset);
}

