// The page shows one view at a time, selected by the URL fragment. Everything that comes from a study is set as text.

import { figure, short } from "/curves.js";
import { buildForm } from "/form.js";

const TOKEN_KEY = "oec-token";
const PLAN_DELAY_MS = 400;
const LIST_POLL_MS = 4000;
const RECONNECT_MS = 1000;
const $ = (selector) => document.querySelector(selector);
let closeView = () => {};  // cancels the timers and requests of the current view

class ApiError extends Error {
  constructor(status, problem) {
    super(`${problem.field}: ${problem.problem}; ${problem.remedy}`);
    this.status = status;
    this.problem = problem;
  }
}

async function request(path, options = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(TOKEN_KEY)}`, ...options.headers };
  const response = await fetch(path, { ...options, headers: headers });
  if (response.ok) return response;
  let problem = { field: "request", problem: `failed with status ${response.status}`, remedy: "try again" };
  try {
    problem = { ...problem, ...(await response.json()) };
  } catch (error) {
    console.warn(error);
  }
  if (response.status === 401) signOut();
  throw new ApiError(response.status, problem);
}

const getJson = async (path, options) => (await request(path, options)).json();
const post = (path, body, type = "application/json") => getJson(path, { method: "POST", body: body, headers: { "Content-Type": type } });

function showError(error) {
  if (error && error.name === "AbortError") return;
  $("#error").textContent = error ? error.message || String(error) : "";
}

function signOut() {
  sessionStorage.removeItem(TOKEN_KEY);
  route();
}

function tableCells(...texts) {
  return texts.map((text) => {
    const cell = document.createElement("td");
    if (text instanceof Node) cell.append(text);
    else cell.textContent = text;
    return cell;
  });
}

// A table row whose first `left` cells are aligned left.
function tableRow(left, ...texts) {
  const row = document.createElement("tr");
  row.append(...tableCells(...texts));
  [...row.children].slice(0, left).forEach((cell) => cell.classList.add("left"));
  return row;
}

const formatDuration = (seconds) => {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.round(seconds) % 60];
  return h ? `${h}:${String(m).padStart(2, "0")}:${String(s).padStart(2, "0")}` : `${m}:${String(s).padStart(2, "0")}`;
};
const countEnded = (counts) => Object.entries(counts).filter(([state]) => !["planned", "running"].includes(state)).reduce((sum, [, n]) => sum + n, 0);
const countAll = (counts) => Object.values(counts).reduce((sum, n) => sum + n, 0);

// The list of studies, refreshed by polling.
function showList() {
  let timer;
  const poll = async () => {
    try {
      const { studies, cluster } = await getJson("/api/v1/studies");
      $("#list tbody").replaceChildren(...studies.map((study) => {
        const link = Object.assign(document.createElement("a"), { href: `#/study/${encodeURIComponent(study.name)}`, textContent: study.name });
        const row = tableRow(2, link, study.state, countEnded(study.cells), countAll(study.cells), study.message || study.description);
        row.lastChild.className = "note";
        return row;
      }));
      $("#list .empty").hidden = studies.length > 0;
      showError(cluster ? null : { message: "The cluster does not answer. The states shown come from the home and may be out of date." });
    } catch (error) {
      showError(error);
    }
    timer = setTimeout(poll, LIST_POLL_MS);
  };
  poll();
  return () => clearTimeout(timer);
}

// The form, which is validated and estimated while the user types.
let form;
async function showForm() {
  form ??= buildForm($("#study-form"), await getJson("/api/v1/schema"));
  let timer, requests = 0;
  const yaml = () => $("#yaml").value.trim();
  const content = () => (yaml() ? [$("#yaml").value, "application/yaml"] : [JSON.stringify(form.value()), "application/json"]);

  function showEstimate(cost) {
    const list = document.createElement("dl");
    const rows = {
      curves: cost.curves.length, cells: cost.cells, tokens: cost.tokens.toLocaleString("en"),
      "estimated time": formatDuration(cost.seconds), "concurrent cells": `${cost.max_concurrent} (limited by ${cost.bound_by})`,
      "core-hours": short(cost.core_hours),
      ...(cost.accelerator_hours ? { "accelerator-hours": short(cost.accelerator_hours) } : {}),
      "speed": cost.measured ? "measured" : "nominal",
    };
    for (const [term, value] of Object.entries(rows)) {
      list.append(Object.assign(document.createElement("dt"), { textContent: term }), Object.assign(document.createElement("dd"), { textContent: value }));
    }
    $(".cost").replaceChildren(list);
  }

  function showRefusal(error) {
    const problem = error.problem && typeof error.problem === "object" ? error.problem : error.field ? error : null;
    const isInForm = problem && !yaml() && form.showProblem(problem);
    const text = problem ? (isInForm ? `${problem.field} ${problem.problem}` : `${problem.field}: ${problem.problem}; ${problem.remedy}`) : error.message;
    $(".cost").replaceChildren(Object.assign(document.createElement("p"), { className: "problem", textContent: text }));
    $("#submit").disabled = true;
  }

  async function plan() {
    const number = ++requests;
    try {
      const cost = await post("/api/v1/plan", ...content());
      if (number !== requests) return;
      form.showProblem(null);
      showEstimate(cost);
      $("#submit").disabled = false;
    } catch (error) {
      if (number === requests) showRefusal(error);
    }
  }

  const onInput = () => {
    $("#submit").disabled = true;
    clearTimeout(timer);
    timer = setTimeout(plan, PLAN_DELAY_MS);
  };
  const submit = async () => {
    $("#submit").disabled = true;
    try {
      const started = await post("/api/v1/studies", ...content());
      location.hash = `#/study/${encodeURIComponent(started.study)}`;
    } catch (error) {
      showRefusal(error);
      $("#submit").disabled = error.status === 422;
    }
  };
  const prevent = (event) => event.preventDefault();
  $("#new").addEventListener("input", onInput);
  $("#study-form").addEventListener("submit", prevent);
  $("#submit").addEventListener("click", submit);
  return () => {
    clearTimeout(timer);
    $("#new").removeEventListener("input", onInput);
    $("#study-form").removeEventListener("submit", prevent);
    $("#submit").removeEventListener("click", submit);
  };
}

// Server-sent events through fetch, which can send a token. Reconnects after the last event received.
async function followEvents(path, since, signal, onEvent) {
  let last = since;
  while (!signal.aborted) {
    try {
      const response = await request(`${path}?since=${last}`, { signal: signal });
      const stream = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await stream.read();
        if (done) break;
        text += value;
        const frames = text.split("\n\n");
        text = frames.pop();
        for (const frame of frames) {
          const fields = Object.fromEntries(frame.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
          if (fields.id !== undefined) last = Number(fields.id);
          if (fields.event) onEvent(fields.event, JSON.parse(fields.data));
          if (fields.event === "end") return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status && error.status < 500 && error.status !== 429) throw error;
      console.warn(error);
    }
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
  }
}

function showStudy(name) {
  const path = `/api/v1/studies/${encodeURIComponent(name)}`;
  const closing = new AbortController();
  let charts = [], running = [], timer, isFollowing = false, lastSummary = {};
  $("#study h1").textContent = name;
  $("#charts").replaceChildren();
  $("#running tbody").replaceChildren();
  $("#table tbody").replaceChildren();
  $("#log pre").textContent = "";
  $("#log").open = false;

  const draw = () => {
    const figures = charts.map((chart) => figure(chart, charts.length === 1 ? running : []));
    $("#charts").replaceChildren(...(figures.length ? figures : [Object.assign(document.createElement("p"), { className: "soft", textContent: "No cells have ended yet." })]));
    $("#running").parentElement.hidden = !running.length;
    $("#running tbody").replaceChildren(...running.map((cell) => tableRow(1, cell.label, `${cell.step} of ${cell.steps}`, short(cell.val_loss))));
  };
  const load = async () => {
    const [curves, table] = await Promise.all([getJson(`${path}/curves`), getJson(`${path}/table`)]);
    charts = curves.charts;
    $("#table tbody").replaceChildren(...table.rows.map((one) => tableRow(2, one.scale, [one.method, one.gamma !== null ? short(one.gamma) : "", one.attention_norm === "qk-norm" ? "" : one.attention_norm].filter(Boolean).join(" "), short(one.LRS), short(one.best_loss), short(one.best_lr), one.diverged, one.cells)));
    draw();
    return curves.seq;
  };
  const showSummary = (summary) => {
    lastSummary = summary;
    const counts = Object.entries(summary.cells).map(([key, n]) => `${n} ${key}`).join(", ");
    $("#study .where").textContent = [summary.state, `${countEnded(summary.cells)} of ${countAll(summary.cells)} cells ended`, counts, summary.message].filter(Boolean).join(" · ");
    $("#study .description").textContent = summary.description;
    const isActive = ["starting", "running"].includes(summary.state);
    $("#stop").disabled = !isActive;
    $("#resume").disabled = isActive || summary.state === "damaged";
    $("#crashed").hidden = !summary.cells.crashed;
  };
  const onEvent = (event, data) => {
    if (event === "state") showSummary(data);
    else if (event === "progress") { running = data; draw(); }
    else if (event === "reset" || (event === "ledger" && !["planned", "running", "open"].includes(data.event)) || event === "end") {
      clearTimeout(timer);
      timer = setTimeout(() => load().catch(showError), event === "end" ? 0 : 300);
    }
  };
  const watch = async () => {
    if (isFollowing) return;
    isFollowing = true;
    try {
      showSummary(await getJson(path));
      await followEvents(`${path}/events`, await load(), closing.signal, onEvent);
    } catch (error) {
      if (!closing.signal.aborted) showError(error);
    }
    isFollowing = false;
  };
  const change = async (action, body) => {
    try {
      await post(`${path}/${action}`, JSON.stringify(body));
      showError(null);
      showSummary({ ...lastSummary, state: action === "stop" ? "stopping" : "starting" });
      watch();
    } catch (error) {
      showError(error);
    }
  };
  const openReport = () => {
    const view = open("/view");
    addEventListener("message", async (event) => {
      if (event.source !== view) return;
      try {
        view.postMessage(await (await request(`${path}/report`)).text(), "*");
      } catch (error) {
        showError(error);
        view.close();
      }
    }, { signal: closing.signal });
  };
  const listen = (selector, event, handler) => $(selector).addEventListener(event, handler, { signal: closing.signal });
  listen("#stop", "click", () => change("stop", {}));
  listen("#resume", "click", () => change("resume", { retry_crashed: $("#retry").checked }));
  listen("#report", "click", openReport);
  listen("#log", "toggle", async () => {
    if (!$("#log").open) return;
    try {
      $("#log pre").textContent = (await getJson(`${path}/logs`)).text || "No output yet.";
    } catch (error) {
      $("#log pre").textContent = error.message;
    }
  });
  listen("#crashed", "toggle", async () => {
    if (!$("#crashed").open) return;
    try {
      const found = await getJson(`${path}/cells?state=crashed&limit=20`);
      $("#crashed pre").textContent = found.cells.map((cell) => `${cell.label}\n${cell.reason}`).join("\n\n");
    } catch (error) {
      $("#crashed pre").textContent = error.message;
    }
  });
  watch();
  return () => {
    clearTimeout(timer);
    closing.abort();
  };
}

async function route() {
  closeView();
  closeView = () => {};
  showError(null);
  const token = sessionStorage.getItem(TOKEN_KEY);
  const [, view = "", name = ""] = location.hash.split("/");
  const shown = !token ? "sign-in" : view === "new" ? "new" : view === "study" ? "study" : "list";
  for (const id of ["sign-in", "list", "new", "study"]) $(`#${id}`).hidden = id !== shown;
  $("#nav").hidden = $("#sign-out").hidden = !token;
  try {
    if (shown === "list") closeView = showList();
    else if (shown === "new") closeView = await showForm();
    else if (shown === "study") closeView = showStudy(decodeURIComponent(name));
    else $("#token").focus();
  } catch (error) {
    showError(error);
  }
}

$("#sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN_KEY, $("#token").value.trim());
  $("#token").value = "";
  route();
});
$("#sign-out").addEventListener("click", signOut);
addEventListener("hashchange", route);
route();
