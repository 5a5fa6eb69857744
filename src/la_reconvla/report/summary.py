"""A study as text: ``tables.md`` and what the terminal shows."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from la_reconvla.analysis.declaration import declared_in
from la_reconvla.analysis.results import Results
from la_reconvla.report.findings import findings
from la_reconvla.report.next_step import next_step
from la_reconvla.report.phrases import headline, leading, paired, reason, spelled
from la_reconvla.report.tables import (
    beside,
    comparison_table,
    error_table,
    exploratory,
    exploratory_table,
    floor_table,
    grid_table,
    loss_table,
    other_starts_tables,
    overlap_table,
    retained_table,
    sequence_tables,
    stage_table,
    success_table,
    verdict_table,
    wording_table,
)
from la_reconvla.text_table import TextTable, duration, points


def markdown(results: Results, further: Iterable[TextTable] = ()) -> str:
    """All of it as Markdown, with what ran, on what and how long, and then `further` tables."""
    s = results.study
    took = ", ".join(f"{part} {duration(seconds)}" for part, seconds in s.wall_seconds.items())
    facts = {
        "command": f"`{s.command}`",
        "commit": s.commit,
        "finished": s.finished,
        "setting": ", ".join(f"{key} {value}" for key, value in s.settings.items() if key != "config"),
        "machine": ", ".join(f"{key} {value}" for key, value in s.hardware.items()),
        "versions": ", ".join(f"{key} {value}" for key, value in s.versions.items()),
        "time": took,
        "action error": s.action_error_unit,
        "pairing": "; ".join(map(paired, s.pairing)) or "not checked",
        "declaration": f"SHA-256 {s.hypotheses_hash}" if s.hypotheses_hash else "no hash of it was kept",
        "intervals": "95 %; n, of held-out frames, is the number of different scenes",
    }
    found = [f"- {text}" for text in filter(None, [reason(results), *findings(results).values()])]
    parts = [
        f"# {s.preset}: {headline(results)}",
        spelled("\n".join(found), results.conditions),
        "\n".join(f"- {key}: {value}" for key, value in facts.items()),
    ]
    makers = (
        success_table,
        floor_table,
        grid_table,
        stage_table,
        error_table,
        overlap_table,
        comparison_table,
        exploratory_table,
        verdict_table,
    )
    away = (*other_starts_tables(results), wording_table(results), loss_table(results), retained_table(results))
    tables = [*sequence_tables(results), *(make(results) for make in makers), *away, *further]
    return "\n\n".join([*filter(None, parts), *(table.markdown() for table in tables if table.rows)]) + "\n"


def terminal_summary(results: Results) -> RenderableType:
    """What a terminal of 80 columns shows of a study: verdict, how far episodes got, what training did, checks."""
    judged = leading(results)
    colour = {"supported": "green", "refuted": "red"}.get(judged.verdict if judged else "", "yellow")
    found = [findings(results).get(section, "") for section in ("curves", "reconstructions")]
    said = [reason(results), *undeclared(results), *found, f"Checks: {checks(results)}."]
    lines = [Text(spelled(text, results.conditions)) for text in said if text]
    tables = [table for table in (*sequence_tables(results), counts_table(results)) if table.rows]
    return Group(Panel(headline(results), border_style=colour), *tables, *lines)


def print_summary(results: Results, console: Console) -> None:
    """`terminal_summary`, then the command that would decide more, in one line to be copied, and what it would find."""
    console.print(terminal_summary(results))
    for line in step.lines if (step := next_step(results)) else ():
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def undeclared(results: Results) -> list[str]:
    """A line for each comparison by success of an arm that no declared comparison names."""
    declared = declared_in(results.study).exploratory
    return [
        f"Exploratory: {c.a} - {c.b} {points(c.difference)} points of success ({points(c.low)} to {points(c.high)})."
        for c in exploratory(results)
        if c.metric == "tsr" and (c.a, c.b, c.metric) not in declared
    ]


def counts_table(results: Results) -> TextTable:
    """How many episodes of every arm, floor and reference reached a stage and succeeded, as n/m."""
    found = [(c.id, c.stages, c.tsr) for c in results.conditions]
    found += [(name, f.stages, f.tsr) for name, f in beside(results)]
    stages = {"approached": "reached", "grasped": "grasped", "lifted": "lifted"}
    rows = [
        (name, *(_of(getattr(s, stage, None), rate.episodes) for stage in stages), _of(rate.rate, rate.episodes))
        for name, s, rate in found
        if rate is not None
    ]
    return TextTable("Episodes", ("arm", *stages.values(), "success"), rows)


def _of(share: float | None, episodes: int) -> str:
    return "–" if share is None else f"{round(share * episodes)}/{episodes}"


def checks(results: Results) -> str:
    """Whether the numbers can be trusted, in one line: references, floors, shared starts, equal beginnings."""
    said = [f"{r.id} {_of(r.tsr.rate, r.tsr.episodes)}" for r in results.references]
    if floors := [f.tsr for f in results.floors if f.tsr]:
        best = max(floors, key=lambda rate: rate.rate)
        said.append(f"best floor {_of(best.rate, best.episodes)}")
    leaks = [leak.what for leak in results.leakage if leak.verdict == "leak"]
    said.append(f"training and evaluation share {', '.join(leaks)}" if leaks else "no leak found")
    said.append("arms began equal" if results.study.pairing else "whether arms began equal was not checked")
    return "; ".join(said)
