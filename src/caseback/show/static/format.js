// Numbers as a reader wants them; a number that is not known is an en dash, never a zero.

export const NONE = "–";
const known = (x) => typeof x === "number" && Number.isFinite(x);
const minus = (text) => text.replace("-", "−");

export const count = (n) => (known(n) ? minus(Math.round(n).toLocaleString("en-US")) : NONE);

// A measured share as per cent: .874 → "87 %"; short of everything is not rounded to it: .9991 → "99.9 %".
export const percent = (share) => (known(share) ? `${bare(share)} %` : NONE);

function bare(share) {
  const p = share * 100;
  if (p > 99 && p < 100) return (Math.trunc(p * 10) / 10).toFixed(1);
  return minus(p.toFixed(0)).replace(/^−0$/, "0");
}

// A small share, to two digits: .00019 → "0.019 %".
export function part(share) {
  if (!known(share)) return NONE;
  const p = share * 100;
  return p >= 10 || p === 0 ? percent(share) : p < 1e-4 ? `${p.toExponential(0)} %` : `${Number(p.toPrecision(2))} %`;
}

// An interval of shares: "82–91 %"; with a negative end "−3 to 5 %".
export function interval(low, high) {
  if (!known(low) || !known(high)) return "";
  return `${bare(low)}${low < 0 || high < 0 ? " to " : "–"}${bare(high)} %`;
}

// A signed score of three digits.
export function score(x) {
  if (!known(x)) return NONE;
  return (x > 0 ? "+" : "") + number(x, 3);
}

// A plain number of some significant digits.
export function number(x, digits = 3) {
  if (!known(x)) return NONE;
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size < 1e-4 || size >= 1e7) return minus(x.toExponential(digits - 1));
  return minus(size >= 10 ** digits ? Math.round(x).toLocaleString("en-US") : x.toPrecision(digits));
}

// Fixed decimals, for columns that must line up.
export const fixed = (x, decimals = 2) => (known(x) ? minus(x.toFixed(decimals)) : NONE);

export function duration(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds < 100) return `${number(seconds, 2)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${number(seconds / 3600, 2)} h`;
}

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
