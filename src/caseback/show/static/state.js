// What the reader chose, kept in the URL's hash, so that a link shows what its sender saw. No storage, no history entries.

// `defaults` names the keys and their starting values, all strings; only what differs is written.
export function hashState(defaults) {
  const listeners = [];
  let values = read();
  let timer = 0;

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(Object.entries(defaults).map(([key, value]) => [key, given.get(key) ?? value]));
  }

  function write() {
    const params = new URLSearchParams();
    for (const key of Object.keys(defaults)) if (values[key] !== defaults[key]) params.set(key, values[key]);
    const hash = params.toString();
    // The whole address, because a srcdoc document resolves a bare "#…" against its parent's.
    history.replaceState(null, "", location.href.split("#")[0] + (hash ? `#${hash}` : ""));
  }

  function change(next) {
    const changed = new Set(Object.keys(defaults).filter((key) => next[key] !== values[key]));
    if (!changed.size) return;
    values = next;
    for (const listen of listeners) listen(values, changed);
  }

  addEventListener("hashchange", () => change(read()));

  return {
    get: () => values,
    set(patch) {
      change({ ...values, ...patch });
      clearTimeout(timer);
      timer = setTimeout(write, 120); // browsers stop listening to a page that rewrites its address at every step of a drag
    },
    // Calls `listen(values, changed keys)` now and at every change.
    listen(listen) {
      listeners.push(listen);
      listen(values, new Set(Object.keys(defaults)));
    },
  };
}
