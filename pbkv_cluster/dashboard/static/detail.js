// One open workflow, in a dialog.

import { byId, el, empty, show, table } from "./dom.js";
import { clock, count, percent, seconds } from "./format.js";

const number = { number: true };

export async function openDetail(id) {
  byId("detail-title").textContent = id;
  show(byId("detail-body"), empty("asking the gateway…"));
  byId("detail").showModal();
  let body;
  try {
    const answer = await fetch(`api/workflow?id=${encodeURIComponent(id)}`);
    const found = await answer.json();
    body = answer.ok ? detail(found) : empty(answer.status === 404 ? "It has ended meanwhile." : `It cannot be shown: ${found.error}`);
  } catch (error) {
    body = empty(`The dashboard's server does not answer: ${error.message}`);
  }
  if (byId("detail-title").textContent === id) show(byId("detail-body"), body);
}

function detail(found) {
  const survival = found.forecast ?? [];
  return [
    el("p", {}, `Workload ${found.workload || "without a name"}, started at ${clock(found.started)}, ${count(found.steps)} steps, on ${found.workers.join(", ") || "no worker yet"}. `,
      `It ends after ${seconds(found.lease_s)} of silence.`),
    el("h3", {}, "Expected"),
    survival.length === 0 ? empty("There is no forecast of it yet.") : table("Forecast", [
      ["step", ({ ahead }) => `+${ahead}`],
      ["goes on", (step) => percent(step.survival, 0), number],
      ["likeliest agents, if it does", ({ agents }) => agents.map(({ agent, probability }) => `${agent} ${percent(probability, 0)}`).join(", ") || "no agent is known"],
    ], survival.map((step, at) => ({ ...step, ahead: at + 1 }))),
    found.experts.length > 0 && el("p", { class: "hint" }, `Weights for the next step: ${found.experts.map(({ name, weight }) => `${name} ${percent(weight, 0)}`).join(", ")}.`),
    el("h3", {}, "What is cached of it"),
    found.cached.length === 0 ? empty("Nothing.") : table("Cached runs of blocks", [
      ["last block", ({ key }) => blockButton(key)],
      ["tokens", ({ start, tokens }) => `${count(start)} to ${count(start + tokens)}`],
      ["where", ({ worker, tiers }) => `${worker}: ${Object.entries(tiers).map(([tier, tokens]) => `${tier} ${count(tokens)}`).join(", ")}`],
      ["agents", ({ agents }) => agents.join(", ") || "–"],
      ["shared by", ({ workflows }) => (workflows > 1 ? `${workflows} workflows` : "only it"), number],
      ["last used", ({ in_use: used, idle_s: idle }) => (used ? "in use" : `${seconds(idle)} ago`), number],
      ["why", ({ last }) => (last === null ? "–" : `${last.what} ${seconds(last.age_s)} ago: ${last.why || last.code}`)],
    ], found.cached),
    el("div", { id: "detail-block", "aria-live": "polite" }),
    el("h3", {}, "Last decisions about its blocks"),
    found.decisions.length === 0 ? empty("None is remembered (cache.decision_log_bytes).") : decisions(found.decisions),
    el("h3", {}, "Steps"),
    found.steps_kept.length === 0 ? empty("None yet.") : table("Steps", [
      ["step", ({ step }) => step, number],
      ["agent", ({ agent, call_site: site }) => (site ? `${agent} at ${site}` : agent)],
      ["started", ({ started }) => clock(started)],
      ["took", ({ duration_s: took }) => (took === null ? "runs" : seconds(took)), number],
      ["prompt", ({ prompt }) => count(prompt), number],
      ["output", ({ output }) => count(output), number],
      ["then", ({ tools }) => tools.join(", ") || "–"],
    ], found.steps_kept)];
}

const standings = {
  candidate: ({ ahead, candidates }) => `${count(ahead)} of ${count(candidates)} runs that can leave go before it`,
  in_use: () => "stays: a running step uses it",
  needed: () => "stays: blocks after it need it",
};

const worth = ({ value, by_lru: lru }) => (lru ? "last use (LRU)" : value === null ? "–" : value.toPrecision(3));

const blockButton = (key) =>
  el("button", { class: "link", type: "button", "data-key": key, "aria-label": `Why block ${key.slice(0, 12)} lies there`, onclick: () => openBlock(key) }, key.slice(0, 12));

function decisions(found) {
  return table("Decisions", [
    ["when", ({ age_s: age }) => `${seconds(age)} ago`, number],
    ["what", ({ what }) => what],
    ["why", ({ why, code }) => why || code],
    ["value", worth, number],
    ["block", ({ key, blocks }) => [blockButton(key), blocks > 1 ? ` and ${count(blocks - 1)} before it` : ""]],
    ["worker", ({ worker }) => worker],
  ], found);
}

// Why one block lies where it does, or no longer does.
async function openBlock(key) {
  const place = byId("detail-block");
  show(place, empty("asking the caches…"));
  let body;
  try {
    const answer = await fetch(`api/block?key=${encodeURIComponent(key)}`);
    const found = await answer.json();
    body = answer.ok ? block(found) : empty(answer.status === 404 ? "No cache remembers this block." : `It cannot be shown: ${found.error}`);
  } catch (error) {
    body = empty(`The dashboard's server does not answer: ${error.message}`);
  }
  show(place, body);
  place.scrollIntoView({ block: "nearest" });
}

function block(found) {
  return [
    el("h3", {}, `Block ${found.key.slice(0, 12)}`),
    found.places.length === 0 ? empty("It has left all caches.") : table("Where the block lies", [
      ["where", ({ worker, tier, copy }) => `${worker}: ${tier}${copy ? ", a copy" : ""}`],
      ["value now", ({ value, policy }) => (value === null ? `by ${policy}` : `${value.toPrecision(3)} by ${policy}`)],
      ["leaves", (each) => (standings[each.standing] ?? (() => each.standing))(each)],
    ], found.places),
    found.decisions.length === 0 ? empty("No decision about it is remembered.") : decisions(found.decisions)];
}
