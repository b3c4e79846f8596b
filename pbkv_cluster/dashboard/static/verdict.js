// The answer to the first question: does the cache earn its memory? From the figures of the time that is shown.

import { bar, byId, el, legend, show } from "./dom.js";
import { count, percent, ratio, seconds, short, sum } from "./format.js";

const LITTLE = 0.05; // share of prompt tokens
const CLOSE = 0.005;
const OTHER = [["from other workers", "sibling", "remote"], ["from the disk", "disk"]]; // shown if there is any

export function showVerdict(found, when) {
  const place = byId("verdict");
  if (!found?.prompt) {
    show(place,
      el("p", { class: "says" }, "No step has finished yet"),
      el("p", { class: "why" }, `There is nothing to judge in the ${when}. As soon as a step ends, this says what the cache saved it; `,
        el("code", {}, "pbkv submit"), " sends one."));
    return;
  }
  const delivered = sum(found.delivered);
  const available = Math.max(found.available, delivered);
  const gpu = found.delivered.gpu ?? 0;
  const parts = [
    ["from the GPU", "gpu", gpu],
    ["from the host", "host", found.delivered.host ?? 0],
    ...OTHER.map(([name, ...tiers]) => [name, "other", sum(tiers.map((tier) => found.delivered[tier] ?? 0))]).filter(([, , size]) => size > 0),
    ["computed again", "missed", available - delivered],
    ["new", "new", found.prompt - available],
  ].map(([name, kind, size]) => [name, kind, size, percent(size / found.prompt)]);
  const lru = ratio(found.guard_lru, found.guard_prompt);
  const cache = ratio(found.guard_cache, found.guard_prompt);
  const [says, why] = judge(found, delivered, available, lru, cache, when);
  show(place,
    el("p", { class: "says" }, says),
    el("p", { class: "why" }, why),
    el("div", { class: "bar-frame" },
      bar("Prompt tokens", parts, found.prompt),
      lru !== null && el("span", { class: lru > 0.45 ? "mark right" : "mark", style: { left: `${100 * lru}%` } }, el("b", {}, `LRU would have had ${percent(lru)}`))),
    legend(parts),
    el("dl", { class: "tiles" },
      tile("Delivered", percent(delivered / found.prompt), `of ${short(found.prompt)} prompt tokens`),
      tile("Of what was possible", percent(ratio(delivered, available)), `an infinite cache: ${percent(available / found.prompt)}`),
      tile("Prefill saved", `≈ ${seconds(found.saved_s)}`, "at the speed measured on the workers"),
      lru === null
        ? tile("Over LRU", "–", "policy lru, or no guard: nothing to compare with")
        : tile("Over LRU", signed(found.saved_over_lru_s, seconds), `${signed(100 * (cache - lru), (points) => points.toFixed(1))} points of hit rate`, found.saved_over_lru_s < -CLOSE ? "bad" : "")));
}

function judge(found, delivered, available, lru, cache, when) {
  const share = delivered / found.prompt;
  const possible = available / found.prompt;
  const facts = `In the ${when}, ${count(found.steps)} steps brought ${short(found.prompt)} prompt tokens. ${percent(possible)} of them had been computed before; ${percent(share)} came from the cache.`;
  if (possible < LITTLE) {
    return ["There is hardly anything to reuse", `${facts} No cache can save much here: look below at where the agents' prompts part.`];
  }
  const against = lru === null ? "" : Math.abs(cache - lru) < CLOSE
    ? " LRU in the same memory would have done as well."
    : ` LRU in the same memory would have had ${percent(lru)} instead of ${percent(cache)}.`;
  const says = delivered >= 0.5 * available ? "The cache spares" : "The cache misses much: it spares";
  return [`${says} ${percent(share, 0)} of all prefill`, facts + against];
}

const tile = (name, value, note, kind = "") => el("div", { class: "tile" }, el("dt", {}, name), el("dd", { class: kind }, value, el("small", {}, note)));

const signed = (value, format) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${format(Math.abs(value))}`;
