// Charts over time. Their colours are the page's, so they follow the reader's preference for the dark.

import { bytes, percent, seconds } from "./format.js";
import { el } from "./dom.js";

const colour = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const whole = (value) => (value === null || value === undefined ? "–" : value.toFixed(Number.isInteger(value) ? 0 : 1));

// Series: [name, column, colour, filled]
const CHARTS = {
  hits: { text: (value) => percent(value), top: 1, none: "No steps in this time", series: [
    ["available", "available", "--missed"], ["captured", "captured", "--host"], ["delivered", "delivered", "--gpu", true], ["LRU would have had", "lru", "--lru", false, [5, 4]]] },
  ttft: { text: seconds, none: "No steps in this time", series: [["median", "ttft_p50", "--gpu"], ["95 %", "ttft_p95", "--host"], ["99 %", "ttft_p99", "--missed"]] },
  queue: { text: whole, none: "Nothing is known of this time yet", always: true, series: [["running", "running", "--gpu", true], ["waiting", "waiting", "--missed"]] },
  bus: { text: (value) => `${bytes(value)}/s`, height: 120, none: "Nothing is known of this time yet", always: true, series: [
    ["to the GPU", "loaded_per_s", "--gpu"], ["from the GPU", "demoted_per_s", "--host"]] },
  prediction: { text: (value) => percent(value), top: 1, none: "No forecast has met its outcome in this time", series: [
    ["came true", "accuracy", "--gpu"], ["promised", "confidence", "--host", false, [5, 4]]] },
};

const drawn = new Map();

export function draw(charts) {
  for (const place of document.querySelectorAll("[data-chart]")) drawOne(place, CHARTS[place.dataset.chart], charts);
}

export function redraw() {
  for (const plot of drawn.values()) plot.redraw();
}

function drawOne(place, chart, charts) {
  const known = charts.time && chart.series.some(([, column]) => charts[column].some((value) => value !== null));
  if (!known) {
    drawn.get(place)?.destroy();
    drawn.delete(place);
    place.removeAttribute("role");
    place.replaceChildren(el("p", { class: "empty" }, chart.none));
    return;
  }
  const data = [charts.time, ...chart.series.map(([, column]) => charts[column])];
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", chart.series.map(([name], at) => `${name} ${chart.text(latest(data[at + 1]))}`).join(", "));
  const plot = drawn.get(place);
  if (plot) {
    plot.setData(data);
    return;
  }
  place.replaceChildren();
  drawn.set(place, new uPlot(options(place, chart), data, place));
}

const latest = (values) => values.findLast((value) => value !== null) ?? null;

function options(place, chart) {
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return {
    width: place.clientWidth,
    height: chart.height ?? 180,
    cursor: { y: false, points: { size: 6 } },
    scales: { y: { range: (_, __, most) => [0, chart.top ?? Math.max(most * 1.1, 1e-3)] } },
    axes: [
      { ...axis, values: (_, times, __, ___, step) => times.map((time) => new Date(1000 * time).toLocaleTimeString("en-GB", step < 60 ? {} : { hour: "2-digit", minute: "2-digit" })), space: 70 },
      { ...axis, size: 62, values: (_, values) => values.map((value) => chart.text(value)), space: 30 },
    ],
    series: [
      { label: "time", value: (_, time) => (time === null ? "" : new Date(1000 * time).toLocaleTimeString("en-GB")) },
      ...chart.series.map(([label, , name, filled, dash]) => ({
        label, dash, stroke: colour(name), width: 2, spanGaps: true, points: { size: 3 },
        fill: filled ? () => `color-mix(in srgb, ${colour(name)()} 18%, transparent)` : undefined,
        value: (plot, value, series, at) => chart.text(at === null ? latest(plot.data[series]) : value),
      })),
    ],
  };
}

new ResizeObserver(() => {
  for (const [place, plot] of drawn) if (place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: plot.height });
}).observe(document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
