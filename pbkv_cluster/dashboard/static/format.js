// Numbers as people read them.

const whole = new Intl.NumberFormat("en");

export const count = (value) => (value === null || value === undefined ? "–" : whole.format(Math.round(value)));

export function short(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e4, " k"]]) {
    if (Math.abs(value) >= size) return `${(value / (size === 1e4 ? 1e3 : size)).toPrecision(3)}${unit}`;
  }
  return count(value);
}

export const percent = (share, digits = 1) => (share === null || share === undefined || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(digits)} %`);

export const ratio = (part, all) => (all > 0 ? part / all : null);

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (Math.abs(value) >= size) return `${(value / size).toPrecision(3)} ${unit}`;
  }
  return `${Math.round(value)} B`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 5400) return `${(value / 3600).toFixed(1)} h`;
  if (size >= 90) return `${(value / 60).toFixed(1)} min`;
  if (size >= 1 || size === 0) return `${value.toFixed(1)} s`;
  return `${(1000 * value).toFixed(0)} ms`;
}

export const clock = (time) => new Date(1000 * time).toLocaleTimeString("en-GB");

export const spoken = (range) => ({ 900: "last 15 minutes", 3600: "last hour", 21600: "last 6 hours", 86400: "last 24 hours" })[range];

export const sum = (values) => Object.values(values ?? {}).reduce((total, value) => total + value, 0);
