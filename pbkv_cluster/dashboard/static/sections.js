// Everything below the verdict, from the latest snapshot.

import { bar, byId, el, empty, legend, show, table } from "./dom.js";
import { bytes, clock, count, percent, ratio, seconds, short, sum } from "./format.js";
import { openDetail } from "./detail.js";

const number = { number: true };

export function showSnapshot(snapshot) {
  byId("cluster").textContent = snapshot.cluster ?? "";
  byId("model").textContent = (snapshot.model ?? "").split("/").at(-1);
  byId("model").title = snapshot.model ?? "";
  show(byId("trouble"), (snapshot.trouble ?? []).map((text) => el("p", { class: "trouble" }, text)));
  if (!snapshot.members) return;
  show(byId("totals"), totals(snapshot.totals));
  show(byId("memory"), snapshot.workers.length ? snapshot.workers.map(memory) : empty("There is no worker."));
  show(byId("prefetch"), prefetch(snapshot.workers));
  show(byId("queue"), queue(snapshot.workers));
  show(byId("prediction"), prediction(snapshot.prediction, snapshot.workers));
  show(byId("workloads"), workloads(snapshot.prediction));
  show(byId("workflows"), workflows(snapshot.workflows));
  byId("open").textContent = snapshot.workflows.open > snapshot.workflows.shown.length
    ? `${count(snapshot.workflows.open)} are open; those heard of last are shown. A click shows all that is known of one.`
    : "A click shows all that is known of one.";
  show(byId("agents"), agents(snapshot.agents));
  show(byId("members"), members(snapshot));
  show(byId("notices"), notices(snapshot.notices));
}

function totals(found) {
  if (!found) return empty("The gateway does not answer, so its counts are not known.");
  const tiers = (values) => Object.entries(values).filter(([, tokens]) => tokens).map(([tier, tokens]) => `${tier} ${count(tokens)}`).join(", ");
  const rows = [
    ["prompt", found.prompt, null, ""],
    ["available", found.available, ratio(found.available, found.prompt), ""],
    ["captured", sum(found.captured), ratio(sum(found.captured), found.prompt), tiers(found.captured)],
    ["delivered", sum(found.delivered), ratio(sum(found.delivered), found.prompt), tiers(found.delivered)],
    ["computed", found.computed, null, ""],
    ["generated", found.generated, null, ""],
  ];
  return [
    el("h3", {}, `Since the gateways started: ${count(found.steps)} steps, ${count(found.failed)} failed, ${count(found.refused)} refused`),
    table("Tokens since the gateways started", [
      ["tokens", ([name]) => name],
      ["count", ([, value]) => count(value), { number: true, figure: ([name]) => name }],
      ["hit rate", ([, , share]) => (share === null ? "" : percent(share)), number],
      ["by tier", ([, , , text]) => text],
    ], rows)];
}

function memory(worker) {
  if (!worker.answers) return [el("h3", {}, worker.name), empty("It does not answer; its memory is not known.")];
  return Object.entries(worker.tiers).flatMap(([tier, { capacity, used, locked, retired: unused, shared: common }]) => {
    // Who uses the blocks is asked less often than how many there are, so its parts may not fill the whole, or more than it.
    const idle = used - (locked ?? 0);
    const retired = Math.min(unused ?? 0, idle);
    const shared = Math.min(common ?? 0, idle - retired);
    const parts = [
      ...(locked === null ? [] : [["running", "locked", locked]]),
      ...(common === null ? [] : [["shared by open workflows", "shared", shared]]),
      [unused === null ? "cached" : "one open workflow", "active", idle - retired - shared],
      ...(unused === null ? [] : [["retired", "retired", retired]]),
      ["free", "new", capacity - used],
    ].map(([name, kind, size]) => [name, kind, size, bytes(size)]);
    return [el("h3", {}, `${worker.name}, ${tier === "gpu" ? "GPU" : tier}: `, el("span", { "data-figure": `${worker.name}-${tier}` }, percent(used / capacity)), ` of ${bytes(capacity)}`),
      bar(`${worker.name} ${tier}`, parts, capacity, { thin: true }), legend(parts)];
  });
}

function prefetch(workers) {
  const told = workers.flatMap(({ name, prefetch: loaded, staged }) => [
    ...(loaded ? [{ name, to: "GPU", ...loaded }] : []),
    ...(staged && worthShowing(staged) ? [{ name, to: "host", ...staged }] : []),
  ]);
  if (told.length === 0) return empty("No worker brings blocks ahead.");
  if (!told.some(worthShowing)) return empty("No block has been brought ahead yet.");
  return table("Blocks brought ahead", [
    ["worker", ({ name }) => name],
    ["to", ({ to }) => to],
    ["blocks", ({ loaded }) => count(loaded), { number: true, figure: ({ name, to }) => `${name}-ahead-${to}` }],
    ["used", ({ used, loaded }) => [meter(ratio(used, loaded)), count(used)], number],
    ["wasted", ({ wasted }) => count(wasted), number],
    ["cancelled", ({ cancelled }) => count(cancelled), number],
  ], told);
}

const worthShowing = ({ loaded }) => loaded > 0;

function queue(workers) {
  return table("Load by worker", [
    ["worker", (worker) => worker.name],
    ["engine", (worker) => worker.engine],
    ["running", (worker) => count(worker.running), number],
    ["waiting", (worker) => count(worker.waiting), number],
    ["tokens waiting", (worker) => (worker.waiting_tokens === null ? "–" : short(worker.waiting_tokens)), number],
    ["prefill", (worker) => (worker.prefill_rate ? `${short(worker.prefill_rate)} tokens/s` : "not measured yet"), number],
  ], workers.filter((worker) => worker.answers));
}

function prediction(found, workers) {
  const guards = workers.filter((worker) => worker.guard);
  const ages = workers.filter((worker) => worker.forecast_age !== null && worker.forecast_age !== undefined);
  const state = el("p", {},
    guards.length === 0 ? "No guard runs. " : guards.map(({ name, guard }) => el("span", { class: guard.lru_active ? "bad" : "" },
      `${name}: ${guard.lru_active ? "the policy costs more, LRU evicts" : "the guard follows the policy"}${guard.switches ? ` (${count(guard.switches)} switches)` : ""}. `)),
    ages.length ? `Latest forecast: ${ages.map(({ name, forecast_age: age }) => `${name} ${seconds(age)} ago`).join(", ")}.` : "No worker has had a forecast yet.");
  if (!found) return [state, empty("The predictor does not answer. Workers rank by what they knew.")];
  if (!found.scored) return [state, empty("No forecast has met its outcome yet.")];
  return [state,
    el("h3", {}, `Since the predictor started: ${count(found.correct)} of ${count(found.scored)} right (${percent(found.correct / found.scored)}), ${percent(found.confidence / found.scored)} promised`),
    table("Calibration", [
      ["sure up to", ({ up_to: upTo }) => percent(upTo, 0)],
      ["forecasts", ({ scored }) => count(scored), number],
      ["came true", ({ scored, correct }) => [meter(ratio(correct, scored)), percent(ratio(correct, scored))], number],
    ], found.calibration.filter(({ scored }) => scored))];
}

const meter = (share) => el("span", { class: "meter", "aria-hidden": "true" }, el("i", { style: { width: `${100 * (share ?? 0)}%` } }));

function workloads(found) {
  if (!found?.workloads.length) return empty("No workload has run yet.");
  return table("Workloads", [
    ["workload", ({ name }) => name],
    ["steps", ({ steps }) => count(steps), number],
    ["available", ({ available, prompt }) => percent(ratio(available, prompt)), number],
    ["delivered", ({ delivered, prompt }) => percent(ratio(delivered, prompt)), number],
    ["forecast right", ({ accuracy }) => percent(accuracy), number],
    ["predictable", ({ predictability }) => (predictability === null ? "–" : predictability.toFixed(2)), number],
  ], found.workloads);
}

function workflows({ shown }) {
  if (!shown.length) return empty("No workflow is open. A workflow appears here as soon as a client starts it.");
  return table("Open workflows", [
    ["workflow", ({ id }) => el("button", { class: "link", "data-key": id, onclick: () => openDetail(id) }, id)],
    ["workload", ({ workload }) => workload || "–"],
    ["path so far", ({ path, steps }) => path.length === 0 ? "no step yet" : el("span", { class: "path" }, steps > path.length ? "… " : "", path.slice(0, -1).map((agent) => `${agent} → `), el("b", {}, path.at(-1)))],
    ["now", ({ running, tool, idle_s: idle }) => (running ? "a step runs" : tool ? `tool ${tool}, ${seconds(idle)}` : `quiet for ${seconds(idle)}`)],
    ["expected next", ({ next }) => expected(next)],
    ["cached tokens", ({ cached }) => Object.entries(cached).map(([tier, tokens]) => `${tier} ${short(tokens)}`).join(", ") || "none"],
  ], shown);
}

function expected(next) {
  if (!next) return "not known yet";
  const ends = 1 - next.survival;
  const all = [...next.agents.map(({ agent, probability }) => [agent, probability * next.survival]), ["the end", ends]];
  return all.filter(([, share]) => share >= 0.05).sort((a, b) => b[1] - a[1]).slice(0, 3)
    .map(([name, share]) => el("span", { class: "next" }, meter(share), `${name} ${percent(share, 0)}`));
}

function agents(found) {
  if (!found.length) return empty("No agent has finished a step yet.");
  return table("Agents and call sites", [
    ["agent", ({ agent }) => agent],
    ["call site", ({ call_site: site }) => site || "–"],
    ["workload", ({ workload }) => workload || "–"],
    ["steps", ({ steps }) => count(steps), number],
    ["prompt tokens", ({ prompt }) => short(prompt), number],
    ["available", ({ available, prompt }) => percent(ratio(available, prompt)), number],
    ["delivered", ({ delivered, prompt }) => [meter(ratio(delivered, prompt)), percent(ratio(delivered, prompt))], number],
    ["computed again", ({ available, delivered }) => short(Math.max(0, available - delivered)), number],
    ["prompts part", ({ parting }) => (parting === null ? "no two to compare" : parting === 0 ? "at once" : `after ${count(parting)}`), number],
  ], found);
}

function members({ members: found, arenas }) {
  const state = (member) => !member.up ? el("span", { class: "bad" }, "is being restarted")
    : !member.answers ? el("span", { class: "bad" }, "does not answer")
      : member.problems.length ? el("span", { class: "bad" }, member.problems.join("; ")) : el("span", { class: "good" }, "serves");
  const arena = ({ name }) => (arenas[name] ? `; arena ${bytes(arenas[name].taken)} of ${bytes(arenas[name].capacity)} taken` : "");
  return table("Nodes and members", [
    ["member", ({ name }) => name],
    ["kind", ({ kind }) => kind || "–"],
    ["node", ({ node }) => el("span", { title: node }, node.length > 10 ? `${node.slice(0, 8)}…` : node || "–")],
    ["state", state],
    ["memory", (member) => `${bytes(member.memory)}${arena(member)}`],
    ["restarts", ({ restarts }) => count(restarts), number],
    ["ended last because", ({ last_failure: failure }) => failure || "–"],
  ], found);
}

function notices(found) {
  if (!found.length) return empty("Nothing has happened that needs your eye since this page's server started.");
  return el("ul", { class: "notices", tabindex: "0", role: "log", "aria-label": "Worth knowing" },
    found.map(({ time, level, text }) => el("li", {}, el("time", { datetime: new Date(1000 * time).toISOString() }, clock(time)), el("span", { class: level }, text))));
}
