// The list of studies, refreshed by polling, from which several can be chosen for a comparison.

import { $, countAll, countEnded, element, getJson, showError, tableRow } from "/api.js";

const LIST_POLL_MS = 4000;
const chosen = new Set();  // names in the order in which they were chosen, which is that of the comparison

function showChosen() {
  $("#compare-chosen").disabled = chosen.size < 2;
  const [first, ...others] = chosen;
  $("#chosen").textContent = others.length ? `${others.join(", ")} against ${first}` : first ? `${first}; choose one more.` : "Choose two or more studies.";
}

function chooser(name) {
  const box = element("input", { type: "checkbox", checked: chosen.has(name), ariaLabel: `Compare ${name}` });
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(name);
    else chosen.delete(name);
    showChosen();
  });
  return box;
}

// A description may be a whole paragraph, which belongs on the page of its study.
const firstSentence = (text) => /^.*?[.!?](?=\s|$)/s.exec(text)?.[0] ?? text;
const noteOf = (study) => study.message || firstSentence(study.description ?? "");
const cellsOf = (study) => [study.state, countEnded(study.cells), countAll(study.cells), noteOf(study)];

// Rows stay in place, so that a refresh takes the focus from no checkbox or link.
function showRows(studies) {
  const body = $("#list tbody");
  const rows = new Map([...body.rows].map((row) => [row.dataset.study, row]));
  const shown = studies.map((study) => {
    const link = () => element("a", { href: `#/study/${encodeURIComponent(study.name)}` }, study.name);
    const row = rows.get(study.name) || tableRow(3, chooser(study.name), link(), ...cellsOf(study));
    row.dataset.study = study.name;
    row.lastChild.className = "note";
    cellsOf(study).forEach((text, i) => {
      if (row.cells[i + 2].textContent !== String(text)) row.cells[i + 2].textContent = text;
    });
    return row;
  });
  if (shown.length !== body.rows.length || shown.some((row, i) => row !== body.rows[i])) body.replaceChildren(...shown);
}

export function showList() {
  let timer, isClosed = false;
  const poll = async () => {
    try {
      const { studies, cluster } = await getJson("/api/v1/studies");
      if (isClosed) return;
      showRows(studies);
      const names = new Set(studies.map((study) => study.name));
      for (const name of chosen) if (!names.has(name)) chosen.delete(name);
      showChosen();
      $("#list .empty").hidden = studies.length > 0;
      $("#comparing").hidden = studies.length < 2;
      showError(cluster ? null : { message: "The cluster does not answer. The states shown come from the home and may be out of date." });
    } catch (error) {
      showError(error);
    }
    if (!isClosed) timer = setTimeout(poll, LIST_POLL_MS);
  };
  const compare = () => { location.hash = `#/compare/${[...chosen].map(encodeURIComponent).join("/")}`; };
  $("#compare-chosen").addEventListener("click", compare);
  showChosen();
  poll();
  return () => {
    isClosed = true;
    clearTimeout(timer);
    $("#compare-chosen").removeEventListener("click", compare);
  };
}
