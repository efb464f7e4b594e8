// How a number of each kind is written: in a table, with its interval, briefly in a cell, exactly in a tip, at a tick.

import { count, fixed, interval, number, part, percent, score } from "caseback/format";

export const KINDS = {
  count: { shown: count, brief: count, exact: count, tick: plain, between: (low, high) => `${count(low)} … ${count(high)}` },
  percent: {
    shown: percent, between: interval,
    brief: (x) => percent(x).replace(/\s*%$/, ""),
    exact: small,
    tick: small,
  },
  number: {
    shown: (x) => number(x), brief: short, exact: (x) => number(x, 4), tick: plain,
    between: (low, high) => `${number(low)} … ${number(high)}`,
  },
  signed: {
    shown: (x) => score(x), sign: true,
    brief: (x) => (x > 0 ? "+" : "") + short(x),
    exact: (x) => (x > 0 ? "+" : "") + number(x, 4),
    tick: (x) => (x > 0 ? "+" : "") + plain(x),
    between: (low, high) => `${score(low)} … ${score(high)}`,
  },
};

// At most two decimals.
function short(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e5) return number(x, 2);
  return size >= 100 ? count(x) : fixed(x, size >= 10 ? 1 : 2);
}

function small(x) {
  return x > 0 && x < 0.1 ? part(x) : percent(x);
}

// A round number without the zeros a fixed number of digits would add.
function plain(x) {
  if (Number.isInteger(x)) return count(x || 0); // no "−0"
  return number(Number(x.toPrecision(6))).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}
