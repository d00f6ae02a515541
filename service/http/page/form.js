// A form made of a JSON schema, and the value that it holds: only what differs from the schema's defaults.

const LISTS = "Several, with commas.";
const OBJECTS = "One a line: a name, or JSON such as {\"method\": \"z-loss\", \"gamma\": [0.0001, 0.1]}.";

// What a field takes: references followed, and the alternative that is not null.
function resolve(schema, root) {
  const { $ref, anyOf, ...own } = schema;
  if ($ref) return { ...resolve($ref.split("/").slice(1).reduce((at, key) => at[key], root), root), ...own };
  if (!anyOf) return schema;
  const left = anyOf.map((one) => resolve(one, root)).filter((one) => one.type !== "null");
  return { ...(left.find((one) => one.type === "object") || left[0]), ...own, optional: left.length < anyOf.length, alternatives: left };
}

const scalar = (schema) => ["string", "number", "integer"].includes(schema.type);

function number(text, field) {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw { field: field, value: text, problem: "is no number", remedy: "write 0.001 or 1e-3" };
  return value;
}

function reader(schema, root, input, path) {
  const read = (text, of) => (of.type === "string" ? text : number(text, path));
  if (schema.type === "boolean") return () => input.checked;
  if (schema.type !== "array") return () => (input.value.trim() === "" ? undefined : read(input.value.trim(), schema));
  const items = schema.prefixItems ? resolve(schema.prefixItems[0], root) : resolve(schema.items || { type: "string" }, root);
  if (!items.alternatives && scalar(items)) {
    return () => (input.value.trim() === "" ? undefined : input.value.split(",").map((text) => read(text.trim(), items)));
  }
  return () => {
    const lines = input.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!lines.length) return undefined;
    return lines.map((line) => {
      if (!line.startsWith("{")) return line;
      try {
        return JSON.parse(line);
      } catch (error) {
        throw { field: path, value: line, problem: "is no JSON", remedy: OBJECTS };
      }
    });
  };
}

function control(schema, root) {
  if (schema.enum || schema.const !== undefined) {
    const select = document.createElement("select");
    const choices = schema.enum || [schema.const];
    select.append(...(schema.optional ? ["", ...choices] : choices).map((one) => new Option(one, one)));
    return select;
  }
  const items = schema.type === "array" && schema.items ? resolve(schema.items, root) : null;
  const input = document.createElement(items && !(scalar(items) && !items.alternatives) ? "textarea" : "input");
  if (input.tagName === "INPUT") input.type = schema.type === "boolean" ? "checkbox" : "text";
  input.spellcheck = false;
  input.autocomplete = "off";
  if (schema.type === "number" || schema.type === "integer") input.inputMode = "decimal";
  return input;
}

// Fill `form` from `schema`; returns { value(), mark(problem) }.
export function build(form, schema) {
  const readers = [];
  const controls = new Map();

  function fields(into, object, prefix) {
    for (const [name, raw] of Object.entries(object.properties)) {
      const path = prefix ? `${prefix}.${name}` : name;
      const field = resolve(raw, schema);
      if (field.type === "object" && field.properties) {
        const details = document.createElement("details");
        const summary = document.createElement("summary");
        summary.textContent = name;
        const group = document.createElement("fieldset");
        group.setAttribute("aria-label", path);
        details.append(summary);
        if (field.description) details.append(Object.assign(document.createElement("p"), { className: "hint", textContent: field.description }));
        details.append(group);
        into.append(details);
        fields(group, field, path);
        continue;
      }
      const input = control(field, schema);
      input.id = `field-${path}`;
      const hint = document.createElement("p");
      hint.className = "hint";
      hint.id = `${input.id}-hint`;
      const list = input.tagName === "TEXTAREA" ? OBJECTS : field.type === "array" ? LISTS : "";
      const given = raw.default !== undefined && raw.default !== null && field.type !== "boolean" && !field.enum;
      hint.textContent = [field.description, list, given ? `By default ${Array.isArray(raw.default) ? raw.default.join(", ") : raw.default}.` : ""].filter(Boolean).join(" ");
      input.setAttribute("aria-describedby", `${input.id}-hint ${input.id}-problem`);
      const label = document.createElement("label");
      label.htmlFor = input.id;
      const required = (object.required || []).includes(name);
      label.textContent = name.replaceAll("_", " ") + (required ? " (required)" : "");
      if (required) input.required = true;
      const problem = document.createElement("p");
      problem.className = "problem";
      problem.id = `${input.id}-problem`;
      if (field.type === "boolean") input.checked = Boolean(raw.default);
      else if (field.enum && raw.default) input.value = raw.default;
      into.append(label, hint, input, problem);
      controls.set(path, { input: input, problem: problem });
      const read = reader(field, schema, input, path);
      readers.push([path.split("."), () => (field.enum && input.value === "" ? undefined : read()), raw.default]);
    }
  }

  fields(form, schema, "");

  function value() {
    const whole = {};
    for (const [path, read, byDefault] of readers) {
      const found = read();
      if (found === undefined || found === byDefault) continue;
      let at = whole;
      for (const key of path.slice(0, -1)) at = at[key] ??= {};
      at[path.at(-1)] = found;
    }
    return whole;
  }

  // Show a problem at the field that it names, or at the nearest one around it; returns whether there is one.
  function mark(problem) {
    for (const one of controls.values()) {
      one.input.removeAttribute("aria-invalid");
      one.problem.textContent = "";
    }
    if (!problem) return true;
    const parts = problem.field.split(".");
    while (parts.length && !controls.has(parts.join("."))) parts.pop();
    const found = controls.get(parts.join("."));
    if (!found) return false;
    found.input.setAttribute("aria-invalid", "true");
    found.problem.textContent = `${problem.problem}; ${problem.remedy}`;
    found.input.closest("details")?.setAttribute("open", "");
    return true;
  }

  return { value: value, mark: mark };
}
