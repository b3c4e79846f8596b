// Listens to the cluster's snapshots, and asks for the charts of the time that is shown.

import { draw } from "./charts.js";
import { byId, el, show } from "./dom.js";
import { percent, seconds, spoken } from "./format.js";
import { showSnapshot } from "./sections.js";
import { showVerdict } from "./verdict.js";

const STALE_S = 5;
const PHASES = { queue: "in the queue", load: "loading", prefill: "prefill", decode: "decode" };

let heard = 0; // when a snapshot came last, by this page's clock
let lost = false;
let asked = 0;

const range = () => document.querySelector("#ranges input:checked").value;

function listen() {
  const source = new EventSource("api/events");
  source.onmessage = ({ data }) => {
    const first = lost || heard === 0;
    heard = Date.now();
    lost = false;
    const snapshot = JSON.parse(data);
    showSnapshot(snapshot);
    document.title = `pbkv ${snapshot.cluster}`;
    tell();
    if (first) refresh();
  };
  source.onerror = () => {
    lost = true;
    tell();
    // The browser tries again by itself, unless it was refused.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
}

function tell() {
  const age = (Date.now() - heard) / 1000;
  const [state, text] = lost ? ["lost", heard ? `disconnected since ${seconds(age)}; trying again` : "not reachable; trying again"]
    : heard === 0 ? ["connecting", "connecting"]
      : age > STALE_S ? ["stale", `no news for ${seconds(age)}`] : ["live", "live"];
  const place = byId("connection");
  if (place.textContent !== text) place.textContent = text;
  place.dataset.state = document.body.dataset.state = state;
}

async function refresh() {
  const [seconds, number] = [range(), ++asked];
  let found;
  try {
    const answer = await fetch(`api/history?seconds=${seconds}`);
    if (!answer.ok) return;
    found = await answer.json();
  } catch {
    return; // the stream tells that the server is away
  }
  if (number !== asked) return; // another range was chosen meanwhile
  showVerdict(found.window, spoken(seconds));
  showLatency(found.window);
  draw(found.charts);
}

function showLatency(found) {
  if (!found?.steps) return show(byId("latency"));
  const spent = Object.entries(found.phases);
  const all = spent.reduce((total, [, value]) => total + value, 0);
  const line = (name, values) => `${name}: median ${seconds(values.p50)}, 95 % ${seconds(values.p95)}, 99 % ${seconds(values.p99)}. `;
  show(byId("latency"),
    el("p", {}, line("First token", found.ttft), line("Whole step", found.step)),
    all > 0 && el("p", { class: "hint" }, `Time of the steps on their workers: ${spent.map(([phase, value]) => `${PHASES[phase]} ${percent(value / all, 0)}`).join(", ")}.`));
}

byId("ranges").addEventListener("change", refresh);
setInterval(tell, 1000);
setInterval(() => document.visibilityState === "visible" && refresh(), 4000);
listen();
refresh();
