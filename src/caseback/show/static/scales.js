// From data to pixels and back, and where to put the ticks.

export function linear([d0, d1], [r0, r1]) {
  const slope = (r1 - r0) / (d1 - d0 || 1);
  const scale = (x) => r0 + (x - d0) * slope;
  scale.ticks = (n) => {
    const raw = (d1 - d0) / n;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999) * power;
    const ticks = [];
    for (let i = Math.ceil(d0 / step - 1e-9); i * step <= d1 + 1e-9 * step; i++) ticks.push(i * step);
    return ticks;
  };
  return scale;
}

export function log([d0, d1], range) {
  const inner = linear([Math.log(d0), Math.log(d1)], range);
  const scale = (x) => inner(Math.log(x));
  scale.ticks = () => {
    const ticks = [];
    for (let p = Math.ceil(Math.log10(d0) - 1e-9); 10 ** p <= d1 * 1.0001; p++) ticks.push(10 ** p);
    return ticks;
  };
  return scale;
}

// The least and the greatest of the numbers, gaps ignored; [0, 1] when there are none.
export function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const x of values) {
    if (x === null || x === undefined) continue;
    if (x < low) low = x;
    if (x > high) high = x;
  }
  return low <= high ? [low, high] : [0, 1];
}

// Index of the value nearest to x on a log axis; -1 when there is none.
export function nearest(values, x) {
  let best = -1;
  let distance = Infinity;
  values.forEach((value, i) => {
    const d = Math.abs(Math.log(value / x));
    if (d < distance) [best, distance] = [i, d];
  });
  return best;
}
