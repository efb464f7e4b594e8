// Talking to the server this page came from: JSON, one stream of events, one stream of lines. The token came in the
// address the terminal printed; it is kept for this server's other pages and taken out of the address at once.

const KEY = "caseback-token";

export function take() {
  const params = new URLSearchParams(location.hash.slice(1));
  if (!params.has("token")) return;
  localStorage.setItem(KEY, params.get("token"));
  params.delete("token");
  const rest = params.toString();
  history.replaceState(null, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
}

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function reach(path, options = {}) {
  const headers = { "x-caseback-token": localStorage.getItem(KEY) ?? "" };
  if (options.body !== undefined) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer. Was it ended in the terminal? `caseback view` starts it again.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, told.error ?? `The server answered ${answer.status}.`);
}

export const ask = async (path, params = {}, { signal } = {}) => {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== "" && value !== undefined));
  return (await reach(query.size ? `${path}?${query}` : path, { signal })).json();
};

export const text = async (path) => (await reach(path)).text();

export const send = async (path, body) => (await reach(path, { method: "POST", body: JSON.stringify(body) })).json();

// Calls `line(object)` for every line of the answer as it comes; ends when the answer does or `signal` says so.
export async function lines(path, body, line, signal) {
  const answer = await reach(path, { method: "POST", body: JSON.stringify(body), signal });
  for await (const part of split(answer.body, "\n")) if (part) line(JSON.parse(part));
}

// Server-sent events: calls `on[name](data)`; begins again when the stream breaks off, until `on` answers true or the
// server refuses. A page that is not seen follows nothing: browsers open few connections to one server.
export async function follow(path, on, { broken = () => {} } = {}) {
  for (let wait = 1; ; wait = Math.min(2 * wait, 15)) {
    await seen();
    const leaving = new AbortController();
    const leave = () => document.hidden && leaving.abort();
    document.addEventListener("visibilitychange", leave);
    try {
      const answer = await reach(path, { signal: leaving.signal });
      broken(null);
      for await (const block of split(answer.body, "\n\n")) {
        const name = /^event: (.*)$/m.exec(block)?.[1];
        if (!name) continue;
        wait = 1;
        if (on[name]?.(JSON.parse(/^data: (.*)$/m.exec(block)[1]))) return;
      }
    } catch (error) {
      if (leaving.signal.aborted) continue;
      broken(error);
      if (error instanceof Refused && error.status >= 400 && error.status !== 503) return;
    } finally {
      document.removeEventListener("visibilitychange", leave);
    }
    await new Promise((done) => setTimeout(done, 1000 * wait));
  }
}

// When the page is before somebody's eyes.
const seen = () => new Promise((done) => {
  const look = () => {
    if (document.hidden) return;
    document.removeEventListener("visibilitychange", look);
    done();
  };
  document.addEventListener("visibilitychange", look);
  look();
});

async function* split(stream, mark) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value ?? "")).split(mark);
    rest = parts.pop();
    yield* parts;
    if (done) break;
  }
  if (rest) yield rest;
}
