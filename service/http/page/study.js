// One study: its curves, which grow with its events, and what can be done with it.

import { $, countAll, countEnded, element, getJson, post, request, showError, tableRow } from "/api.js";
import { figure, short } from "/curves.js";

const RECONNECT_MS = 1000;

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

export function showStudy(name) {
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
    $("#charts").replaceChildren(...(figures.length ? figures : [element("p", { className: "soft" }, "No cells have ended yet.")]));
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
