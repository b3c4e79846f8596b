"""The report as one HTML file: no script, nothing loaded from elsewhere, light and dark."""

from collections.abc import Iterable, Sequence
from html import escape

from pbkv_cluster.simulator.report.assessment import Assessment
from pbkv_cluster.simulator.report.charts import Series, grouped_bars, stacked_bar
from pbkv_cluster.simulator.report.findings import Comparison
from pbkv_cluster.simulator.report.sweep import POLICIES, Outcome

_AGENTS_MAX = 40  # in the table

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --paper: #fff; --box: #f6f8fa;
  --lru: #9a6700; --pbkv: #0969da; --clairvoyant: #1a7f37; --own: #0969da; --others: #8250df; --new: #d1d9e0; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --box: #151b23;
  --lru: #d29922; --pbkv: #4493f8; --clairvoyant: #3fb950; --own: #4493f8; --others: #ab7df8; --new: #3d444d; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.soft, caption { color: var(--soft); } .verdict { background: var(--box); border: 1px solid var(--line); border-radius: 8px;
  padding: .75rem 1.25rem; } .verdict p { margin: .4rem 0; } .verdict p:first-child { font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg.stack { height: .8rem; min-width: 8rem; display: block; }
.title { fill: var(--ink); font-size: 13px; font-weight: 600; } .tick { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--line); stroke-width: 1; }
.bar-lru { fill: var(--lru); } .bar-pbkv { fill: var(--pbkv); } .bar-clairvoyant { fill: var(--clairvoyant); }
.part-own { fill: var(--own); } .part-others { fill: var(--others); } .part-new { fill: var(--new); }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em; vertical-align: -.05em; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .25rem 0; } th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .agents :is(th, td):nth-child(2) { text-align: left; }
"""


def page(found: Assessment) -> str:
    """The whole file."""
    title = f"Does a KV cache pay for {found.name}?"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f'<p class="soft">{escape(subtitle(found))}</p>',
            f'<section class="verdict" aria-label="Verdict">{_paragraphs(found.findings.reasons)}</section>',
            _potential(found),
            _charts(found),
            _sizes(found),
            _agents(found),
            f"<h2>How this was found</h2>{_paragraphs(notes(found))}",
            "</body></html>",
        ]
    )


def subtitle(found: Assessment) -> str:
    """What was run, on what."""
    return (
        f"{len(found.sampled.trace.workflows):,} workflows, {found.steps:,} steps, {found.potential.prompt_tokens:,} prompt "
        f"tokens; virtual time, by the cost model of {found.machine}."
    )


def potential_text(found: Assessment) -> str:
    """What could be saved at all."""
    could = found.potential
    total = max(1, could.prompt_tokens)
    own = sum(each.own_tokens for each in could.agents) / total
    rate = could.available_tokens / total
    saved = could.saved_s / could.prefill_s if could.prefill_s else 0.0
    return (
        f"An infinite cache would have {100 * rate:.1f} % of the prompt tokens: {100 * own:.1f} % from the same workflow, "
        f"{100 * (rate - own):.1f} % from others. That is {could.saved_s:,.1f} of {could.prefill_s:,.1f} seconds of prefill "
        f"({100 * saved:.1f} %). With it, first tokens take {could.ttft_mean_s:.3f} s and workflows "
        f"{could.latency_mean_s:.2f} s without their pauses (means)."
    )


def notes(found: Assessment) -> list[str]:
    """How the figures came about, and what was assumed."""
    machine = found.machine_note()
    return [
        "Scheduler, cache, policies and predictor are those of production; the GPU is a cost model that moves a clock. Nothing "
        "here was measured on hardware.",
        "Open contexts: blocks of the latest prompt and reply of every agent of every open workflow, at their peak. "
        "Clairvoyant: evicts what is used last of all; no real policy can. pbkv starts with its prior and learns on the way.",
        *([machine] if machine else []),
        *found.assumptions,
    ]


def size_name(found: Assessment, each: Comparison) -> str:
    """A size in words: share of the open contexts, and host memory."""
    host = each.size.host_blocks / each.size.gpu_blocks
    return f"{100 * found.context_share[each.size]:.0f} %" + (f" + host {host:.2g}x" if host else "")


def agent_rows(found: Assessment) -> list[tuple[str, ...]]:
    """By agent: steps, mean prompt, shares that can be reused, and what each policy recomputes where policies matter most."""
    focus = found.focus
    rows = []
    for each in found.potential.agents[:_AGENTS_MAX]:
        site = each.workload, each.agent
        again = (outcome.recomputed_by_agent.get(site, 0) for outcome in (focus.lru, focus.pbkv, focus.clairvoyant))
        rows.append(
            (
                each.workload,
                each.agent,
                f"{each.steps:,}",
                f"{each.prompt_tokens / each.steps:,.0f}",
                f"{100 * each.own_tokens / max(1, each.prompt_tokens):.0f} %",
                f"{100 * each.other_tokens / max(1, each.prompt_tokens):.0f} %",
                *(f"{tokens:,}" for tokens in again),
            )
        )
    return rows


def _potential(found: Assessment) -> str:
    could = found.potential
    total = max(1, could.prompt_tokens)
    own = sum(each.own_tokens for each in could.agents) / total
    others = could.available_tokens / total - own
    bar = stacked_bar((("own", own), ("others", others), ("new", 1 - own - others)), "prompt tokens")
    keys = (("own", "same workflow"), ("others", "other workflows"), ("new", "new, must be computed"))
    legend = "".join(f'<span class="key" style="background:var(--{name})"></span>{text}' for name, text in keys)
    return f"<h2>What could be saved at all</h2><p>{escape(potential_text(found))}</p>{bar}<p class=soft>{legend}</p>"


def _charts(found: Assessment) -> str:
    drawn = []
    hosts = dict.fromkeys(_host_ratio(each) for each in found.comparisons)
    for ratio in hosts:
        own = [each for each in found.comparisons if _host_ratio(each) == ratio]
        groups = [f"{100 * found.context_share[each.size]:.0f} %" for each in own]
        tier = f"host memory {ratio:.2g}x" if ratio else "no host tier"
        for what, unit, read in (
            ("Recomputed tokens", "tokens", lambda outcome: float(outcome.recomputed_tokens)),
            ("Mean seconds to the first token", "s", lambda outcome: outcome.ttft_mean_s),
            ("Mean seconds of a workflow", "s", lambda outcome: outcome.latency_mean_s),
        ):
            series = [
                Series(name, tuple(read(each) for each in outcomes))
                for name, outcomes in zip(POLICIES, zip(*map(_outcomes, own), strict=True), strict=True)
            ]
            drawn.append(grouped_bars(f"{what}, {tier}", unit, groups, series))
    legend = "".join(f'<span class="key" style="background:var(--{name})"></span>{name}' for name in POLICIES)
    return (
        f'<h2>By size of memory</h2><p class="soft">GPU memory in percent of the open contexts.{legend}</p>'
        f'<div class="charts">{"".join(drawn)}</div>'
    )


def _sizes(found: Assessment) -> str:
    head = ("GPU / open contexts", "GPU", "host", "recomputed: LRU", "pbkv", "clairvoyant", "1st token", "workflow")
    rows = [
        (
            size_name(found, each),
            f"{found.gigabytes(each.size.gpu_blocks):.1f} GB",
            f"{found.gigabytes(each.size.host_blocks):.1f} GB",
            *(f"{outcome.recomputed_tokens:,}" for outcome in _outcomes(each)),
            f"{each.ttft:.2f}",
            f"{each.latency:.2f}",
        )
        for each in found.comparisons
    ]
    caption = "What it costs, and what it brings. Last columns: LRU's mean seconds over pbkv's; above 1, pbkv is faster."
    return _table(caption, head, rows)


def _agents(found: Assessment) -> str:
    head = ("workload", "agent", "steps", "mean prompt", "own", "others", "LRU", "pbkv", "clairvoyant")
    caption = (
        f"Reusable: shares of the prompt tokens, from the same workflow and from others. Then tokens that are recomputed with "
        f"{size_name(found, found.focus)}, where the policy matters most."
    )
    return f'<h2>By workload and agent</h2><div class="agents">{_table(caption, head, agent_rows(found))}</div>'


def _outcomes(each: Comparison) -> tuple[Outcome, Outcome, Outcome]:
    return each.lru, each.pbkv, each.clairvoyant


def _host_ratio(each: Comparison) -> float:
    return round(each.size.host_blocks / each.size.gpu_blocks, 2)


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{escape(each)}</th>' for each in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="table"><table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)
