// Where every node of the graph stands: spans are columns, wider where more happens, layers rows from the embedding up to
// the logits, and inside a cell the KV heads lie below the heads and the MLP above them, in the order the residual stream
// meets them.

const MOST_IN_LINE = 12;
const MARGIN = 16; // right of the last column, where edges bow out, px
const TOP = 52; // span names and the logits
const BOTTOM = 70; // the embedding, span names and example tokens
const GOOD_HEIGHT = 690; // of all layers together

export function layoutOf(graph, width) {
  const { L, H, K, spans, node } = graph;
  const inLine = Math.min(H, MOST_IN_LINE);
  const lines = Math.ceil(H / inLine);
  const columns = columnsOf(graph, width - MARGIN, Math.max((inLine + 1.5) * 6, 62));
  const line = Math.min(14, Math.max(6.8, GOOD_HEIGHT / (L * (lines + 2.2))));
  const row = line * (lines + 2.2);
  const height = TOP + L * row + BOTTOM;
  const floor = height - BOTTOM; // lower edge of layer 0

  const centre = (span) => columns[span].left + columns[span].width / 2;
  const pitchOf = (span) => Math.min(16, (columns[span].width - 8) / (inLine + 0.5));
  const ground = (layer) => floor - layer * row;

  function at(id) {
    const { kind, layer, head, span } = node(id);
    const x = centre(span);
    const pitch = pitchOf(span);
    if (kind === "embed") return { x, y: floor + 16 };
    if (kind === "logits") return { x, y: TOP - 18 };
    if (kind === "mlp") return { x, y: ground(layer) - (lines + 1.55) * line };
    if (kind === "kv") return { x: x + spread(head, K, (inLine / K) * pitch), y: ground(layer) - 0.55 * line };
    const level = Math.floor(head / inLine);
    const inThis = Math.min(inLine, H - level * inLine);
    return { x: x + spread(head % inLine, inThis, pitch), y: ground(layer) - (level + 1.55) * line };
  }

  return {
    at, centre, spanOf: (id) => node(id).span, ground, columns, row, height, floor, top: TOP, line,
    right: columns.at(-1).left + columns.at(-1).width,
    width: columns.at(-1).left + columns.at(-1).width + MARGIN,
    radius: (span) => Math.min(4.4, pitchOf(span) * 0.44, line * 0.46),
  };
}

// Share the width out: every column its least, the rest by the weight of the edges that end there.
function columnsOf({ spans, edges, node }, width, least) {
  const weights = new Float64Array(spans.length);
  for (let i = 0; i < edges.n; i++) weights[node(edges.target[i]).span] += Math.abs(edges.score[i]);
  const roots = weights.map((weight) => 0.1 + (weight / (Math.max(...weights) || 1)) ** 0.8);
  const spare = Math.min(Math.max(0, width - least * spans.length), 110 * spans.length);
  const sum = roots.reduce((a, b) => a + b, 0);
  let left = 0;
  return spans.map((_, s) => {
    const column = { left, width: Math.floor(least + (spare * roots[s]) / sum) };
    left += column.width;
    return column;
  });
}

const spread = (i, n, gap) => (i - (n - 1) / 2) * gap;

// The curve of an edge, as the four points of a cubic.
// Q, K and V edges between the same two nodes part ways.
export function wire(layout, ends, channel) {
  const a = layout.at(ends.source);
  const b = layout.at(ends.target);
  if (channel >= 4) {
    const sag = layout.line * [-0.7, 0.35, 0.8][channel - 4];
    const dx = b.x - a.x;
    return layout.spanOf(ends.source) === layout.spanOf(ends.target)
      ? [a.x, a.y, a.x - 2 * sag, a.y - layout.line / 2, b.x - 2 * sag, b.y + layout.line / 2, b.x, b.y]
      : [a.x, a.y, a.x + dx * 0.3, a.y + sag, b.x - dx * 0.3, b.y + sag + layout.line * 0.5, b.x, b.y];
  }
  const rise = a.y - b.y;
  const bow = Math.min(layout.columns[layout.spanOf(ends.target)].width * 0.22, rise * 0.09);
  return [a.x, a.y, a.x + bow, a.y - rise * 0.35, b.x + bow, b.y + rise * 0.35, b.x, b.y];
}

export const path = (p) => `M${f(p[0])} ${f(p[1])}C${f(p[2])} ${f(p[3])} ${f(p[4])} ${f(p[5])} ${f(p[6])} ${f(p[7])}`;
const f = (x) => x.toFixed(1);

// Distance in px from a point to a cubic, by chords.
export function distance(p, x, y, chords = 14) {
  let best = Infinity;
  let [px, py] = [p[0], p[1]];
  for (let i = 1; i <= chords; i++) {
    const t = i / chords;
    const u = 1 - t;
    const [w0, w1, w2, w3] = [u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t];
    const qx = w0 * p[0] + w1 * p[2] + w2 * p[4] + w3 * p[6];
    const qy = w0 * p[1] + w1 * p[3] + w2 * p[5] + w3 * p[7];
    const [dx, dy] = [qx - px, qy - py];
    const along = Math.max(0, Math.min(1, ((x - px) * dx + (y - py) * dy) / (dx * dx + dy * dy || 1)));
    best = Math.min(best, Math.hypot(x - px - along * dx, y - py - along * dy));
    [px, py] = [qx, qy];
  }
  return best;
}
