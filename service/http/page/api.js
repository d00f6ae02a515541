// Requests with the token of this tab, and what all views share.

const TOKEN_KEY = "oec-token";

export const $ = (selector) => document.querySelector(selector);
export const token = {
  get: () => sessionStorage.getItem(TOKEN_KEY),
  set: (secret) => sessionStorage.setItem(TOKEN_KEY, secret),
};

// Forgets the token; page.js then shows the sign-in.
export function signOut() {
  sessionStorage.removeItem(TOKEN_KEY);
  dispatchEvent(new Event("signed-out"));
}

export class ApiError extends Error {
  constructor(status, problem) {
    super(`${problem.field}: ${problem.problem}; ${problem.remedy}`);
    this.status = status;
    this.problem = problem;
  }
}

export async function request(path, options = {}) {
  const headers = { Authorization: `Bearer ${token.get()}`, ...options.headers };
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

export const getJson = async (path, options) => (await request(path, options)).json();
export const post = (path, body, type = "application/json") => getJson(path, { method: "POST", body: body, headers: { "Content-Type": type } });

export function showError(error) {
  if (error && error.name === "AbortError") return;
  $("#error").textContent = error ? error.message || String(error) : "";
}

// An element with properties and children; a string becomes text.
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A table row whose first `left` cells are aligned left.
export function tableRow(left, ...contents) {
  const row = element("tr", {}, ...contents.map((content) => element("td", {}, content ?? "")));
  [...row.children].slice(0, left).forEach((cell) => cell.classList.add("left"));
  return row;
}

export const formatDuration = (seconds) => {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.round(seconds) % 60];
  return h ? `${h}:${String(m).padStart(2, "0")}:${String(s).padStart(2, "0")}` : `${m}:${String(s).padStart(2, "0")}`;
};
export const roundDuration = (seconds) => {
  const minutes = Math.round(seconds / 60), hours = Math.round(seconds / 3600);
  return seconds < 60 ? `${Math.ceil(seconds)} s` : minutes < 120 ? `${minutes} min` : hours < 72 ? `${hours} h` : `${Math.round(hours / 24)} days`;
};
export const countEnded = (counts) => Object.entries(counts).filter(([state]) => !["planned", "running"].includes(state)).reduce((sum, [, n]) => sum + n, 0);
export const countAll = (counts) => Object.values(counts).reduce((sum, n) => sum + n, 0);
