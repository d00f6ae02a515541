// The page: one view at a time, by the address behind "#". Everything that comes from a study is set as text.

import { figure, short } from "/curves.js";
import { build } from "/form.js";

const KEPT = "oec-token";
const PLAN_AFTER_MS = 400;
const LIST_AGAIN_MS = 4000;
const $ = (selector) => document.querySelector(selector);
let leave = () => {};  // ends what the view that is shown has under way

class Refusal extends Error {
  constructor(status, problem) {
    super(`${problem.field}: ${problem.problem}; ${problem.remedy}`);
    this.status = status;
    this.problem = problem;
  }
}

async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEPT)}`, ...options.headers };
  const answer = await fetch(path, { ...options, headers: headers });
  if (answer.ok) return answer;
  let problem = { field: "request", problem: `was answered ${answer.status}`, remedy: "try again" };
  try {
    problem = { ...problem, ...(await answer.json()) };
  } catch (error) {
    console.warn(error);
  }
  if (answer.status === 401) forget();
  throw new Refusal(answer.status, problem);
}

const json = async (path, options) => (await ask(path, options)).json();
const send = (path, body, type = "application/json") => json(path, { method: "POST", body: body, headers: { "Content-Type": type } });

function say(error) {
  if (error && error.name === "AbortError") return;
  $("#said").textContent = error ? error.message || String(error) : "";
}

function forget() {
  sessionStorage.removeItem(KEPT);
  route();
}

function cells(...texts) {
  return texts.map((text, i) => {
    const cell = document.createElement("td");
    if (text instanceof Node) cell.append(text);
    else cell.textContent = text;
    return cell;
  });
}

function row(left, ...texts) {
  const made = document.createElement("tr");
  made.append(...cells(...texts));
  [...made.children].slice(0, left).forEach((cell) => cell.classList.add("left"));
  return made;
}

const clock = (seconds) => {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.round(seconds) % 60];
  return h ? `${h}:${String(m).padStart(2, "0")}:${String(s).padStart(2, "0")}` : `${m}:${String(s).padStart(2, "0")}`;
};
const ended = (counts) => Object.entries(counts).filter(([state]) => !["planned", "running"].includes(state)).reduce((sum, [, n]) => sum + n, 0);
const all = (counts) => Object.values(counts).reduce((sum, n) => sum + n, 0);

// The list of studies, asked for again and again.
function showList() {
  let timer;
  const look = async () => {
    try {
      const { studies, cluster } = await json("/api/v1/studies");
      $("#list tbody").replaceChildren(...studies.map((study) => {
        const link = Object.assign(document.createElement("a"), { href: `#/study/${encodeURIComponent(study.name)}`, textContent: study.name });
        const made = row(2, link, study.state, ended(study.cells), all(study.cells), study.message || study.description);
        made.lastChild.className = "remark";
        return made;
      }));
      $("#list .empty").hidden = studies.length > 0;
      say(cluster ? null : { message: "The cluster does not answer (yet): what is said of studies is what the home knows." });
    } catch (error) {
      say(error);
    }
    timer = setTimeout(look, LIST_AGAIN_MS);
  };
  look();
  return () => clearTimeout(timer);
}

// The form, its validation and its price as one types.
let form;
async function showForm() {
  form ??= build($("#study-form"), await json("/api/v1/schema"));
  let timer, asked = 0;
  const yaml = () => $("#yaml").value.trim();
  const content = () => (yaml() ? [$("#yaml").value, "application/yaml"] : [JSON.stringify(form.value()), "application/json"]);

  function priced(cost) {
    const list = document.createElement("dl");
    const rows = {
      curves: cost.curves.length, cells: cost.cells, tokens: cost.tokens.toLocaleString("en"),
      "estimated time": clock(cost.seconds), "cells in parallel": `${cost.max_concurrent} (limited by ${cost.bound_by})`,
      "core-hours": short(cost.core_hours),
      ...(cost.accelerator_hours ? { "accelerator-hours": short(cost.accelerator_hours) } : {}),
      "speeds": cost.measured ? "measured here" : "nominal",
    };
    for (const [term, value] of Object.entries(rows)) {
      list.append(Object.assign(document.createElement("dt"), { textContent: term }), Object.assign(document.createElement("dd"), { textContent: value }));
    }
    $(".cost").replaceChildren(list);
  }

  function refused(error) {
    const problem = error.problem && typeof error.problem === "object" ? error.problem : error.field ? error : null;
    const shown = problem && !yaml() && form.mark(problem);
    const text = problem ? (shown ? `${problem.field} ${problem.problem}` : `${problem.field}: ${problem.problem}; ${problem.remedy}`) : error.message;
    $(".cost").replaceChildren(Object.assign(document.createElement("p"), { className: "problem", textContent: text }));
    $("#submit").disabled = true;
  }

  async function plan() {
    const number = ++asked;
    try {
      const cost = await send("/api/v1/plan", ...content());
      if (number !== asked) return;
      form.mark(null);
      priced(cost);
      $("#submit").disabled = false;
    } catch (error) {
      if (number === asked) refused(error);
    }
  }

  const typed = () => {
    $("#submit").disabled = true;
    clearTimeout(timer);
    timer = setTimeout(plan, PLAN_AFTER_MS);
  };
  const submit = async () => {
    $("#submit").disabled = true;
    try {
      const started = await send("/api/v1/studies", ...content());
      location.hash = `#/study/${encodeURIComponent(started.study)}`;
    } catch (error) {
      refused(error);
      $("#submit").disabled = error.status === 422;
    }
  };
  const prevent = (event) => event.preventDefault();
  $("#new").addEventListener("input", typed);
  $("#study-form").addEventListener("submit", prevent);
  $("#submit").addEventListener("click", submit);
  return () => {
    clearTimeout(timer);
    $("#new").removeEventListener("input", typed);
    $("#study-form").removeEventListener("submit", prevent);
    $("#submit").removeEventListener("click", submit);
  };
}

// Server-sent events by fetch, which can send a token; taken up again behind the last event that came.
async function follow(path, since, signal, on) {
  let last = since;
  while (!signal.aborted) {
    try {
      const answer = await ask(`${path}?since=${last}`, { signal: signal });
      const stream = answer.body.pipeThrough(new TextDecoderStream()).getReader();
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
          if (fields.event) on(fields.event, JSON.parse(fields.data));
          if (fields.event === "end") return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status && error.status < 500 && error.status !== 429) throw error;
      console.warn(error);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function showStudy(name) {
  const path = `/api/v1/studies/${encodeURIComponent(name)}`;
  const ends = new AbortController();
  let charts = [], running = [], timer, following = false, state = {};
  $("#study h1").textContent = name;
  $("#charts").replaceChildren();
  $("#running tbody").replaceChildren();
  $("#table tbody").replaceChildren();
  $("#log pre").textContent = "";
  $("#log").open = false;

  const draw = () => {
    const drawn = charts.map((chart) => figure(chart, charts.length === 1 ? running : []));
    $("#charts").replaceChildren(...(drawn.length ? drawn : [Object.assign(document.createElement("p"), { className: "soft", textContent: "No cell has ended yet." })]));
    $("#running").parentElement.hidden = !running.length;
    $("#running tbody").replaceChildren(...running.map((cell) => row(1, cell.label, `${cell.step} of ${cell.of}`, short(cell.val_loss))));
  };
  const load = async () => {
    const [curves, table] = await Promise.all([json(`${path}/curves`), json(`${path}/table`)]);
    charts = curves.charts;
    $("#table tbody").replaceChildren(...table.rows.map((one) => row(2, one.scale, [one.method, one.gamma !== null ? short(one.gamma) : "", one.attention_norm === "qk-norm" ? "" : one.attention_norm].filter(Boolean).join(" "), short(one.LRS), short(one.best_loss), short(one.best_lr), one.diverged, one.cells)));
    draw();
    return curves.seq;
  };
  const stands = (summary) => {
    state = summary;
    const counts = Object.entries(summary.cells).map(([key, n]) => `${n} ${key}`).join(", ");
    $("#study .where").textContent = [summary.state, `${ended(summary.cells)} of ${all(summary.cells)} cells ended`, counts, summary.message].filter(Boolean).join(" · ");
    $("#study .description").textContent = summary.description;
    const goesOn = ["starting", "running"].includes(summary.state);
    $("#stop").disabled = !goesOn;
    $("#resume").disabled = goesOn || summary.state === "damaged";
    $("#crashed").hidden = !summary.cells.crashed;
  };
  const on = (event, data) => {
    if (event === "state") stands(data);
    else if (event === "progress") { running = data; draw(); }
    else if (event === "reset" || (event === "ledger" && !["planned", "running", "open"].includes(data.event)) || event === "end") {
      clearTimeout(timer);
      timer = setTimeout(() => load().catch(say), event === "end" ? 0 : 300);
    }
  };
  const watch = async () => {
    if (following) return;
    following = true;
    try {
      stands(await json(path));
      await follow(`${path}/events`, await load(), ends.signal, on);
    } catch (error) {
      if (!ends.signal.aborted) say(error);
    }
    following = false;
  };
  const change = async (what, body) => {
    try {
      await send(`${path}/${what}`, JSON.stringify(body));
      say(null);
      stands({ ...state, state: what === "stop" ? "stopping" : "starting" });
      watch();
    } catch (error) {
      say(error);
    }
  };
  const report = () => {
    const view = open("/view");
    addEventListener("message", async (event) => {
      if (event.source !== view) return;
      try {
        view.postMessage(await (await ask(`${path}/report`)).text(), "*");
      } catch (error) {
        say(error);
        view.close();
      }
    }, { signal: ends.signal });
  };
  const listen = (selector, event, handler) => $(selector).addEventListener(event, handler, { signal: ends.signal });
  listen("#stop", "click", () => change("stop", {}));
  listen("#resume", "click", () => change("resume", { retry_crashed: $("#retry").checked }));
  listen("#report", "click", report);
  listen("#log", "toggle", async () => {
    if (!$("#log").open) return;
    try {
      $("#log pre").textContent = (await json(`${path}/logs`)).text || "It has said nothing yet.";
    } catch (error) {
      $("#log pre").textContent = error.message;
    }
  });
  listen("#crashed", "toggle", async () => {
    if (!$("#crashed").open) return;
    try {
      const found = await json(`${path}/cells?state=crashed&limit=20`);
      $("#crashed pre").textContent = found.cells.map((cell) => `${cell.label}\n${cell.reason}`).join("\n\n");
    } catch (error) {
      $("#crashed pre").textContent = error.message;
    }
  });
  watch();
  return () => {
    clearTimeout(timer);
    ends.abort();
  };
}

async function route() {
  leave();
  leave = () => {};
  say(null);
  const known = sessionStorage.getItem(KEPT);
  const [, view = "", name = ""] = location.hash.split("/");
  const shown = !known ? "enter" : view === "new" ? "new" : view === "study" ? "study" : "list";
  for (const id of ["enter", "list", "new", "study"]) $(`#${id}`).hidden = id !== shown;
  $("#nav").hidden = $("#leave").hidden = !known;
  try {
    if (shown === "list") leave = showList();
    else if (shown === "new") leave = await showForm();
    else if (shown === "study") leave = showStudy(decodeURIComponent(name));
    else $("#token").focus();
  } catch (error) {
    say(error);
  }
}

$("#enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEPT, $("#token").value.trim());
  $("#token").value = "";
  route();
});
$("#leave").addEventListener("click", forget);
addEventListener("hashchange", route);
route();
