// Controls for the fields of a JSON schema. A control is { path, nodes, value(), fill(value), target(rest) }: value() is
// undefined if the field is left at its default, and target(rest) gives { input, problem } for an error at `rest`.

import { element } from "/api.js";

// Follows references, and merges the description of the field into that of its type.
function resolve(schema, root) {
  const { $ref, ...own } = schema;
  return $ref ? { ...resolve($ref.split("/").slice(1).reduce((part, key) => part[key], root), root), ...own } : schema;
}

const alternatives = (schema, root) => (schema.anyOf || [schema]).map((one) => resolve(one, root));

// The values of a field that has only a few; undefined for another field.
function listed(kinds) {
  const values = kinds.map((kind) => kind.enum || (kind.const !== undefined ? [kind.const] : kind.type === "boolean" ? [true, false] : kind.type === "null" ? [null] : null));
  return values.includes(null) ? undefined : values.flat();
}

// A number if the text is one; any other text is left to the service, which says what is wrong with it.
export const parse = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text.trim());
export const parseList = (text) => text.split(/[\s,]+/).filter(Boolean).map(parse);
export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

export const title = (name) => (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");

// A label, its input, the place of its error, and its hint.
export function labeled(name, input, hint = "", required = false) {
  const problem = element("p", { className: "problem", id: `${input.id}-problem` });
  const description = element("p", { className: "hint", id: `${input.id}-hint` }, hint);
  input.setAttribute("aria-describedby", `${problem.id} ${description.id}`);
  if (required) input.setAttribute("aria-required", "true");
  const text = name + (required ? " (required)" : "");
  const isBox = input.type === "checkbox";
  const label = element("label", { htmlFor: input.id, className: isBox ? "check" : "" }, ...(isBox ? [input, text] : [text]));
  return { node: element("div", { className: "field" }, label, ...(isBox ? [] : [input]), problem, description), problem: problem };
}

export function textInput(id, mode = "text") {
  return element("input", { type: "text", id: id, inputMode: mode, spellcheck: false, autocomplete: "off" });
}

function inputOf(kinds, values, id) {
  if (kinds.length === 1 && kinds[0].type === "boolean") return element("input", { type: "checkbox", id: id });
  if (!values) return textInput(id, kinds[0].type === "string" ? "text" : "decimal");
  return element("select", { id: id }, ...values.map((value) => new Option(value === null ? "–" : String(value), JSON.stringify(value))));
}

function createField(name, path, raw, root, required) {
  const kinds = alternatives(resolve(raw, root), root), values = listed(kinds);
  const isList = kinds[0].type === "array", isText = kinds[0].type === "string";
  const input = inputOf(kinds, values, `field-${path}`);
  const { default: preset, description = "" } = raw;
  const shown = Array.isArray(preset) ? preset.join(", ") : preset;
  const hasPreset = !values && preset !== undefined && preset !== null && preset !== "";
  const { node, problem } = labeled(title(name), input, [description, isList ? "Separate values with commas." : ""].filter(Boolean).join(" "), required);
  if (hasPreset) input.placeholder = String(shown);
  const fill = (value) => {
    const given = value === undefined ? preset : value;
    if (input.type === "checkbox") input.checked = Boolean(given);
    else if (values) input.value = JSON.stringify(given ?? null);
    else input.value = value === undefined || value === null ? "" : isList ? value.join(", ") : String(value);
  };
  const read = () => {
    if (input.type === "checkbox") return input.checked;
    if (values) return JSON.parse(input.value);
    if (input.value.trim() === "") return undefined;
    return isList ? parseList(input.value) : isText ? input.value.trim() : parse(input.value);
  };
  fill(undefined);
  const value = () => { const found = read(); return same(found, preset) ? undefined : found; };
  return { path: path, nodes: [node], value: value, fill: fill, target: () => ({ input: input, problem: problem }) };
}

// A group of fields. Those of `first` are always visible; the others unfold.
export function createGroup(name, path, raw, root, first = []) {
  const group = alternatives(resolve(raw, root), root).find((kind) => kind.properties);
  const controls = Object.entries(group.properties).map(([inner, schema]) => createControl(inner, `${path}.${inner}`, schema, root));
  const changed = element("span", { className: "soft" });
  const isFirst = (control) => first.includes(control.path.split(".").at(-1));
  const grid = (shown) => element("div", { className: "fields" }, ...shown.flatMap((control) => control.nodes));
  const heading = first.length ? `More of ${name.replaceAll("_", " ")}` : title(name);
  const hidden = controls.filter((control) => !isFirst(control));
  const about = raw.description ? [element("p", { className: "hint" }, raw.description)] : [];
  const details = element("details", { className: "group" }, element("summary", {}, heading, " ", changed), ...about, grid(hidden));
  const visible = first.length ? [element("fieldset", {}, element("legend", {}, title(name)), grid(controls.filter(isFirst)))] : [];

  const value = () => {
    const found = controls.map((control) => [control.path.split(".").at(-1), control.value()]).filter(([, inner]) => inner !== undefined);
    const names = hidden.filter((control) => control.value() !== undefined).map((control) => control.path.split(".").at(-1).replaceAll("_", " "));
    changed.textContent = names.length ? `changed: ${names.join(", ")}` : "";
    return found.length ? Object.fromEntries(found) : undefined;
  };
  // keep_weights may also be a name, which is short for that field.
  const fill = (content) => controls.forEach((control) => control.fill((typeof content === "string" ? { [content]: true } : content)?.[control.path.split(".").at(-1)]));
  const target = ([inner, ...rest]) => controls.find((control) => control.path === `${path}.${inner}`)?.target(rest);
  return { path: path, nodes: [...visible, details], value: value, fill: fill, target: target };
}

export function createControl(name, path, raw, root, { required = false, first = [] } = {}) {
  const isGroup = alternatives(resolve(raw, root), root).some((kind) => kind.properties);
  return isGroup ? createGroup(name, path, raw, root, first) : createField(name, path, raw, root, required);
}
