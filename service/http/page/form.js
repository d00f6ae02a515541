// The form of a new study. It and the study file below it agree: the service checks whichever changed last, and its
// answer fills the other. It also says what is wrong with the study, and what it would take.

import { $, element, formatDuration, getJson, post, roundDuration } from "/api.js";
import { createLrs, createMethods, createNorms, createScales, createSeeds } from "/choices.js";
import { createControl } from "/fields.js";
import { short } from "/curves.js";

const CHECK_DELAY_MS = 400;
const FIRST = { training: ["steps", "batch_size", "sequence_length", "warmup_steps", "schedule", "precision"] };
const ONLY_IN_FILE = new Set(["trainer", "factors", "lr_factor", "pair", "exclude"]);

let form;  // kept while other views are shown, and so is what was typed

function createForm(schema, choices, onChange) {
  const { scales, attention_norms: norms, methods, significant_digits: digits } = choices;
  const preset = (name) => schema.properties[name].default;
  const scaleList = createScales(scales);
  const special = {
    scales: scaleList, attention_norms: createNorms(norms, preset("attention_norms")), methods: createMethods(methods, onChange),
    lrs: createLrs(digits), seeds: createSeeds(preset("seeds")),
  };
  const controls = Object.entries(schema.properties).filter(([name]) => !ONLY_IN_FILE.has(name)).map(([name, raw]) =>
    special[name] || createControl(name, name, raw, schema, { required: (schema.required || []).includes(name), first: FIRST[name] }));
  const order = ["name", "description", "scales", "attention_norms", "methods", "lrs", "seeds", "training"];
  const place = (control) => (order.includes(control.path) ? order.indexOf(control.path) : order.length);
  controls.sort((a, b) => place(a) - place(b));
  $("#study-form").replaceChildren(...controls.flatMap((control) => control.nodes));
  let others = {};  // the fields of the study that the form does not have
  return {
    showSizes: scaleList.showSizes,
    value() {
      const own = controls.map((control) => [control.path, control.value()]).filter(([, value]) => value !== undefined);
      return { ...Object.fromEntries(own), ...others };
    },
    fill(file) {
      controls.forEach((control) => control.fill(file[control.path]));
      others = Object.fromEntries(Object.entries(file).filter(([name]) => ONLY_IN_FILE.has(name)));
    },
    target(path) {
      const [name, ...rest] = path.split(".");
      return controls.find((control) => control.path === name)?.target(rest);
    },
  };
}

const sentence = ({ problem, remedy }) => `This ${problem}. ${remedy[0].toUpperCase()}${remedy.slice(1)}.`;
const SPOKEN = { lrs: "learning rates" };
const nameOf = ({ field }) => field.split(".").filter((part) => Number.isNaN(Number(part))).join(" ").replaceAll("_", " ");

// Leaves a text that did not change alone: a screen reader would announce it again.
function announce(selector, className, ...texts) {
  const place = $(selector), lines = texts.map((text) => element("p", { className: className }, text));
  if (place.textContent !== texts.join("")) place.replaceChildren(...lines);
}

export async function showForm() {
  if (!form) {
    const [schema, choices] = await Promise.all([getJson("/api/v1/schema"), getJson("/api/v1/choices")]);
    form = { ...createForm(schema, choices, () => $("#study-form").dispatchEvent(new Event("input", { bubbles: true }))), studies: choices.studies, isFromFile: false, touched: new Set(), showAll: false };
    $("#start").replaceChildren(...form.studies.map((study) => new Option(study.name)));
  }
  const closing = new AbortController();
  let timer, requests = 0, problems = [];

  const content = () => (form.isFromFile ? [$("#yaml").value, "application/yaml"] : [JSON.stringify(form.value()), "application/json"]);

  function showEstimate(cost) {
    $("#cost").hidden = !cost;
    if (!cost) return;
    const rows = {
      curves: cost.curves.length, cells: cost.cells, tokens: cost.tokens.toLocaleString("en"),
      "estimated time": formatDuration(cost.seconds), "concurrent cells": `${cost.max_concurrent} (limited by ${cost.bound_by})`,
      "core-hours": short(cost.core_hours), ...(cost.accelerator_hours ? { "accelerator-hours": short(cost.accelerator_hours) } : {}),
      speed: cost.measured ? "measured" : "nominal",
    };
    $("#cost").replaceChildren(...Object.entries(rows).flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, String(value))]));
    announce("#estimate", "", `${cost.cells} ${cost.cells === 1 ? "cell" : "cells"}, about ${roundDuration(cost.seconds)}`);
  }

  // Shows the problems at their fields: at those that were left, or at all of them after an attempt to start.
  function showProblems() {
    for (const input of document.querySelectorAll("#study-form [aria-invalid]")) input.removeAttribute("aria-invalid");
    for (const place of document.querySelectorAll("#study-form .problem")) place.textContent = "";
    $("#yaml").removeAttribute("aria-invalid");
    $("#yaml-problem").replaceChildren();
    if (form.isFromFile) {
      if (problems.length) $("#yaml").setAttribute("aria-invalid", "true");
      $("#yaml-problem").replaceChildren(...problems.map((one) => element("p", {}, `${one.field}: ${one.problem}; ${one.remedy}`)));
      return announce("#problems", "problem");
    }
    const elsewhere = [];
    for (const one of problems) {
      const target = form.target(one.field);
      if (!target) elsewhere.push(one);
      else if (form.showAll || form.touched.has(one.field.split(".")[0])) {
        target.input.setAttribute("aria-invalid", "true");
        target.problem.textContent ||= sentence(one);
      }
    }
    announce("#problems", "problem", ...elsewhere.map((one) => `${one.field}: ${one.problem}; ${one.remedy}`));
  }

  function focusProblem() {
    if (form.isFromFile) {
      $("#file").open = true;
      return $("#yaml").focus();
    }
    const inputs = problems.map((one) => form.target(one.field)?.input).filter(Boolean);
    inputs.sort((a, b) => (a.compareDocumentPosition(b) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1));
    for (const details of $("#study-form").querySelectorAll("details")) if (inputs.some((input) => details.contains(input))) details.open = true;
    inputs[0]?.focus();
  }

  function show(found) {
    problems = found.problems;
    if (found.parameters) form.showSizes(found.parameters);
    if (form.isFromFile && found.file) form.fill(found.file);
    if (!form.isFromFile && found.yaml !== undefined) $("#yaml").value = found.yaml;
    $("#study-form").inert = form.isFromFile && problems.length > 0;
    $("#locked").hidden = !$("#study-form").inert;
    showProblems();
    showEstimate(found.estimate);
    const names = [...new Set(problems.map(nameOf))].map((name) => SPOKEN[name] || name).join(", ");
    if (problems.length) announce("#estimate", "", `Still to complete or correct: ${names}`);
  }

  async function check() {
    clearTimeout(timer);
    const number = ++requests;
    let found;
    try {
      found = await post("/api/v1/draft", ...content());
    } catch (error) {
      found = { problems: [error.problem || { field: "service", problem: "does not answer", remedy: "try again later" }], estimate: null };
    }
    if (number === requests && !closing.signal.aborted) show(found);
    return number === requests;
  }

  const changed = (isFromFile) => {
    form.isFromFile = isFromFile;
    clearTimeout(timer);
    timer = setTimeout(check, CHECK_DELAY_MS);
  };
  const touch = (event) => {
    const field = event.target.id.startsWith("field-method-") || event.target.id === "add-method" ? "methods" : event.target.id.replace("field-", "").split(/[-.]/)[0];
    if (!form.touched.has(field)) {
      form.touched.add(field);
      showProblems();
    }
  };
  const start = async () => {
    const study = form.studies.find((one) => one.name === $("#start").value);
    form.isFromFile = false;
    form.showAll = true;
    form.fill({ ...study.file, description: undefined });
    await check();
  };
  const submit = async () => {
    $("#submit").disabled = true;
    form.showAll = true;
    if ((await check()) && !problems.length) {
      try {
        const { study } = await post("/api/v1/studies", ...content());
        location.hash = `#/study/${encodeURIComponent(study)}`;
      } catch (error) {
        problems = [error.problem || { field: "service", problem: "does not answer", remedy: "try again later" }];
        showProblems();
      }
    }
    $("#submit").disabled = false;
    if (problems.length) focusProblem();
  };
  const describeStart = () => { $("#start-hint").textContent = form.studies.find((one) => one.name === $("#start").value).description; };
  const listen = (selector, event, handler) => $(selector).addEventListener(event, handler, { signal: closing.signal });
  listen("#study-form", "input", () => changed(false));
  listen("#study-form", "focusout", touch);
  listen("#study-form", "submit", (event) => event.preventDefault());
  listen("#yaml", "input", () => changed(true));
  listen("#start", "change", describeStart);
  listen("#use-start", "click", start);
  listen("#submit", "click", submit);
  describeStart();
  check();
  return () => {
    clearTimeout(timer);
    closing.abort();
  };
}
