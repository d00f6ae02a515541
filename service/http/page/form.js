// A form built from a JSON schema. Its value has only the fields that differ from the schema's defaults.

const LIST_HINT = "Separate values with commas.";
const OBJECTS_HINT = "One per line: a name, or JSON such as {\"method\": \"z-loss\", \"gamma\": [0.0001, 0.1]}.";

// The schema of a field: follows references, and picks the alternative that is not null.
function resolve(schema, root) {
  const { $ref, anyOf, ...own } = schema;
  if ($ref) return { ...resolve($ref.split("/").slice(1).reduce((part, key) => part[key], root), root), ...own };
  if (!anyOf) return schema;
  const alternatives = anyOf.map((one) => resolve(one, root)).filter((one) => one.type !== "null");
  const chosen = alternatives.find((one) => one.type === "object") || alternatives[0];
  return { ...chosen, ...own, optional: alternatives.length < anyOf.length, alternatives: alternatives };
}

const isScalar = (schema) => ["string", "number", "integer"].includes(schema.type);

function parseNumber(text, field) {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw { field: field, value: text, problem: "is not a number", remedy: "write 0.001 or 1e-3" };
  return value;
}

function makeReader(schema, root, input, path) {
  const read = (text, type) => (type.type === "string" ? text : parseNumber(text, path));
  if (schema.type === "boolean") return () => input.checked;
  if (schema.type !== "array") return () => (input.value.trim() === "" ? undefined : read(input.value.trim(), schema));
  const items = schema.prefixItems ? resolve(schema.prefixItems[0], root) : resolve(schema.items || { type: "string" }, root);
  if (!items.alternatives && isScalar(items)) {
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
        throw { field: path, value: line, problem: "is not valid JSON", remedy: OBJECTS_HINT };
      }
    });
  };
}

function createControl(schema, root) {
  if (schema.enum || schema.const !== undefined) {
    const select = document.createElement("select");
    const choices = schema.enum || [schema.const];
    select.append(...(schema.optional ? ["", ...choices] : choices).map((one) => new Option(one, one)));
    return select;
  }
  const items = schema.type === "array" && schema.items ? resolve(schema.items, root) : null;
  const input = document.createElement(items && !(isScalar(items) && !items.alternatives) ? "textarea" : "input");
  if (input.tagName === "INPUT") input.type = schema.type === "boolean" ? "checkbox" : "text";
  input.spellcheck = false;
  input.autocomplete = "off";
  if (schema.type === "number" || schema.type === "integer") input.inputMode = "decimal";
  return input;
}

// Fills `form` from `schema`, and returns { value(), showProblem(problem) }.
export function buildForm(form, schema) {
  const readers = [];
  const controls = new Map();

  function addFields(parent, object, prefix) {
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
        parent.append(details);
        addFields(group, field, path);
        continue;
      }
      const input = createControl(field, schema);
      input.id = `field-${path}`;
      const hint = document.createElement("p");
      hint.className = "hint";
      hint.id = `${input.id}-hint`;
      const list = input.tagName === "TEXTAREA" ? OBJECTS_HINT : field.type === "array" ? LIST_HINT : "";
      const hasDefault = raw.default !== undefined && raw.default !== null && raw.default !== "" && field.type !== "boolean" && !field.enum;
      hint.textContent = [field.description, list, hasDefault ? `Default: ${Array.isArray(raw.default) ? raw.default.join(", ") : raw.default}.` : ""].filter(Boolean).join(" ");
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
      parent.append(label, hint, input, problem);
      controls.set(path, { input: input, problem: problem });
      const read = makeReader(field, schema, input, path);
      readers.push([path.split("."), () => (field.enum && input.value === "" ? undefined : read()), raw.default]);
    }
  }

  addFields(form, schema, "");

  function value() {
    const result = {};
    for (const [path, read, defaultValue] of readers) {
      const found = read();
      if (found === undefined || found === defaultValue) continue;
      let parent = result;
      for (const key of path.slice(0, -1)) parent = parent[key] ??= {};
      parent[path.at(-1)] = found;
    }
    return result;
  }

  // Shows a problem at the field that it names, or at the nearest enclosing field; returns whether one was found.
  function showProblem(problem) {
    for (const control of controls.values()) {
      control.input.removeAttribute("aria-invalid");
      control.problem.textContent = "";
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

  return { value: value, showProblem: showProblem };
}
