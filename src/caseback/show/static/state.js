// What the reader chose, kept in the URL's hash, so that a link shows what its sender saw. No storage, no history entries.

// `defaults` names the keys and their starting values, all strings; only what differs is written. `fits` holds tests for
// values that come from an address: one that fails is as good as absent.
export function hashState(defaults, fits) {
  const listeners = [];
  let values = read();
  let timer = 0;

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    const wanted = (key) => (given.has(key) && (fits[key]?.(given.get(key)) ?? true) ? given.get(key) : defaults[key]);
    return Object.fromEntries(Object.keys(defaults).map((key) => [key, wanted(key)]));
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
