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

async function ask(path, options = {}) {
  const headers = { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...options.headers };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "unreachable", "The service does not answer.");
  }
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({ error: { code: "unknown", message: `The service said ${answer.status}.` } }));
    throw new ServiceError(answer.status, error.code, error.message);
  }
  return answer.json();
}

const post = (path, asked, signal) =>
  ask(path, { method: "POST", body: JSON.stringify(asked), headers: { "Content-Type": "application/json" }, signal });

export const about = () => ask("/about");
export const addImage = (blob) => ask("/images", { method: "POST", body: blob, headers: { "Content-Type": "application/octet-stream" } });
export const masks = (image, asked, signal) => post(`/images/${image}/masks`, asked, signal);
export const everything = (image, asked) => post(`/images/${image}/everything`, asked);
