// The payload's edges and nodes as the drawing needs them: decoded once, held in typed arrays, asked by index.
// The numbering is the payload's (show/payload.py); names are those of circuits.Graph.

export const CHANNELS = ["in", "q", "k", "v", "q", "k", "v"];
export const INPUTS = ["input", "query", "key", "value", "query", "key", "value"];
export const crossing = (channel) => channel >= 4;

export function graphOf(payload) {
  const { n_layers: L, n_heads: H, n_kv_heads: K } = payload.model;
  const spans = payload.task.spans;
  const perLayer = H + K + 1;
  const perSpan = L * perLayer + 2;
  const columns = payload.edges;
  const n = columns.score.length;
  const edges = {
    n,
    channel: Uint8Array.from(columns.channel),
    source: Int32Array.from(columns.source),
    target: Int32Array.from(columns.target),
    score: Float64Array.from(columns.score),
    rank: Int32Array.from(columns.rank),
  };
  const strongestFirst = Uint32Array.from({ length: n }, (_, i) => i).sort(
    (a, b) => Math.abs(edges.score[b]) - Math.abs(edges.score[a]) || a - b,
  );

  // What a node is: {kind, layer, head, span}, kind one of embed, head, kv, mlp, logits.
  function node(id) {
    const span = Math.floor(id / perSpan);
    const place = id % perSpan;
    if (place === 0) return { id, kind: "embed", layer: -1, head: -1, span };
    if (place === perSpan - 1) return { id, kind: "logits", layer: L, head: -1, span };
    const layer = Math.floor((place - 1) / perLayer);
    const inner = (place - 1) % perLayer;
    if (inner < H) return { id, kind: "head", layer, head: inner, span };
    if (inner < H + K) return { id, kind: "kv", layer, head: inner - H, span };
    return { id, kind: "mlp", layer, head: -1, span };
  }

  function place(id) {
    const { kind, layer, head } = node(id);
    return { head: `a${layer}.h${head}`, kv: `a${layer}.kv${head}`, mlp: `m${layer}` }[kind] ?? kind;
  }

  const name = (id) => `${place(id)}@${spans[node(id).span]}`;

  function describe(id) {
    const { kind, layer, head, span } = node(id);
    const at = `at ${spans[span]}`;
    if (kind === "embed") return `the token embedding, ${at}`;
    if (kind === "logits") return `the model’s answer, ${at}`;
    if (kind === "mlp") return `MLP of layer ${layer}, ${at}`;
    if (kind === "head") return `attention head ${head} of layer ${layer}, ${at}`;
    return `keys and values of KV head ${head} of layer ${layer}, ${at}`;
  }

  // The name circuits.Graph gives an edge, from its ends.
  function edgeName({ channel, source, target }) {
    const [s, t] = [node(source), node(target)];
    const input = t.kind === "kv" ? `a${t.layer}.h${t.head}` : place(target);
    if (crossing(channel)) return `${place(target)}<${CHANNELS[channel]}>@${spans[s.span]}->${spans[t.span]}`;
    return `${place(source)}->${input}${channel ? `<${CHANNELS[channel]}>` : ""}@${spans[t.span]}`;
  }

  const edge = (i) => ({ channel: edges.channel[i], source: edges.source[i], target: edges.target[i] });

  const byEnds = new Map();
  const key = (e) => `${e.channel} ${e.source} ${e.target}`;
  for (let i = 0; i < n; i++) byEnds.set(key(edge(i)), i);
  const byName = new Map();
  for (const id of new Set([...edges.source, ...edges.target])) byName.set(name(id), id);

  // How many carried edges a circuit of `size` edges holds: edges are sorted by rank.
  function carried(size) {
    let low = 0;
    let high = n;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (edges.rank[middle] <= size) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // The edges of the circuit of `size` that `keeps` lets through, strongest first.
  function* circuit(size, keeps) {
    for (const i of strongestFirst) if (edges.rank[i] <= size && keeps(i)) yield i;
  }

  return {
    L, H, K, spans, edges, node, place, name, describe, edge, carried, circuit,
    edgeName: (i) => edgeName(typeof i === "number" ? edge(i) : i),
    find: (ends) => byEnds.get(key(ends)) ?? -1,
    named: (text) => byName.get(text) ?? -1,
    touches: (i, id) => edges.source[i] === id || edges.target[i] === id,
    strongest: n ? Math.abs(edges.score[strongestFirst[0]]) : 1,
    maxRank: n ? edges.rank[n - 1] : 0,
  };
}
