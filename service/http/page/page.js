// The page shows one view at a time, selected by the URL fragment. Everything that comes from a study is set as text.

import { $, showError, signOut, token } from "/api.js";
import { showComparison } from "/compare.js";
import { showForm } from "/form.js";
import { showList } from "/list.js";
import { showStudy } from "/study.js";

const VIEWS = { new: showForm, study: ([name]) => showStudy(name), compare: showComparison, list: showList };
let closeView = () => {};  // cancels the timers and requests of the current view
let routed = 0;

async function route() {
  const number = ++routed;
  closeView();
  closeView = () => {};
  showError(null);
  const [, view = "", ...names] = location.hash.split("/");
  const shown = !token.get() ? "sign-in" : Object.hasOwn(VIEWS, view) ? view : "list";
  for (const id of ["sign-in", ...Object.keys(VIEWS)]) $(`#${id}`).hidden = id !== shown;
  $("#nav").hidden = $("#sign-out").hidden = !token.get();
  if (shown === "sign-in") return $("#token").focus();
  try {
    const close = (await VIEWS[shown](names.map(decodeURIComponent))) || (() => {});
    if (number === routed) closeView = close;
    else close();
  } catch (error) {
    if (number === routed) showError(error);
  }
}

$("#sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set($("#token").value.trim());
  $("#token").value = "";
  route();
});
$("#sign-out").addEventListener("click", signOut);
addEventListener("signed-out", route);
addEventListener("hashchange", route);
route();
