// The service's addresses, with the token of the page's own address, and errors as people read them.

const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? sessionStorage.getItem("token");
if (token) {
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", location.pathname); // a token does not stay in the address
}

export class ServiceError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// What the service says to programs, for people.
const WORDS = {
  no_token: "The service wants its token: open the whole address that trt-sam serve printed, with #token= in it.",
  body_too_large: "The photo's file is larger than the service takes; save it smaller.",
  busy: "Too many people ask the service at once; try again in a moment.",
};

async function answerOf(path, options = {}) {
  const headers = { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...options.headers };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "unreachable", "The service does not answer; is it still running?");
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({ error: { code: "unknown", message: `The service said ${answer.status}.` } }));
  throw new ServiceError(answer.status, error.code, WORDS[error.code] ?? error.message);
}

const ask = async (path, options) => (await answerOf(path, options)).json();

const post = (path, asked, signal) =>
  ask(path, { method: "POST", body: JSON.stringify(asked), headers: { "Content-Type": "application/json" }, signal });

export const about = () => ask("/about");
export const sample = async (name, signal) => (await answerOf(`/page/${name}`, { signal })).blob();
export const addImage = (blob, signal) =>
  ask("/images", { method: "POST", body: blob, headers: { "Content-Type": "application/octet-stream" }, signal });
export const masks = (image, asked, signal) => post(`/images/${image}/masks`, asked, signal);
export const everything = (image, asked, signal) => post(`/images/${image}/everything`, asked, signal);
