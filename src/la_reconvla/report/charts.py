"""Charts of a study, as SVG that a light and a dark page can show. A chart of what was not measured is None.

Nothing here touches matplotlib's global state, and equal input gives equal bytes.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from la_reconvla.analysis.results import ConditionResult, Floor, Results
from la_reconvla.drawing import readable

COLOURS = ("#8a8f98", "#e69f00", "#56b4e9", "#3b7dd8", "#009e73", "#cc79a7", "#d55e00", "#b9a400")
"""One a condition, in the order of the study; told apart by colour-blind readers, visible on white and on black."""


INK, FAINT = "#1d2430", "#c9ced6"  # of charts on a light page; their backgrounds are transparent
DARK = {INK: "#e4e8ee", FAINT: "#464e5a"}


@dataclass(frozen=True)
class Run:
    """Training curves of one cell: its `records` are the lines of ``metrics.jsonl``."""

    condition: str
    seed: int
    records: Sequence[Mapping[str, Any]]


def _svg(draw: Callable[[Figure], None], size: tuple[float, float]) -> bytes:
    """A chart of `size` (inches) as SVG; text is drawn as paths, so that it looks alike everywhere."""
    style: dict[Any, Any] = {
        "svg.hashsalt": "la-reconvla",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.facecolor": "none",
        "grid.color": FAINT,
        "grid.linewidth": 0.5,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def for_dark_page(svg: bytes) -> bytes:
    """A chart in light ink."""
    for light, dark in DARK.items():
        svg = svg.replace(light.encode(), dark.encode())
    return svg


def colours(results: Results) -> dict[str, str]:
    """The colour of each condition, the same in every figure."""
    return {c.id: COLOURS[i % len(COLOURS)] for i, c in enumerate(results.conditions)}


# ---------------------------------------------------------------- charts


def success_chart(results: Results) -> bytes | None:
    """Task success rate of each arm with its interval, floors as lines; None if nothing was rolled out."""
    arms = [(c, c.tsr) for c in results.conditions if c.tsr]
    if not arms:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (condition, rate) in enumerate(arms):
            _point(axes, row, rate.rate, rate.low, rate.high, colours(results)[condition.id])
            axes.text(1.03, row, f"{rate.successes}/{rate.episodes}", va="center")
            for floor in results.floors:
                if floor.condition == condition.id and floor.tsr:
                    _tick(axes, row, floor.tsr.rate, INK, ":")
        shared = [(f.id, f.tsr.rate) for f in results.floors if f.tsr and f.condition is None]
        for dashes, (name, value) in zip(("--", "-.", ":"), shared, strict=False):
            axes.axvline(value, color=INK, linewidth=1, linestyle=dashes, label=f"{readable(name)} {value:.0%}")
        own = sorted({readable(f.id) for f in results.floors if f.tsr and f.condition})
        if own:
            axes.plot([], [], color=INK, linestyle=":", label=f"the arm's own floor: {', '.join(own)}")
        _rows(axes, [c for c, _ in arms])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        axes.set_xlabel("task success rate, 95 % interval")
        if shared or own:
            figure.legend(loc="outside upper left", ncols=2)

    return _svg(draw, (7, 0.9 + 0.42 * len(arms)))


def task_chart(results: Results) -> bytes | None:
    """Success by task: a large point per arm over all seeds, a small one per seed; None if nothing was rolled out."""
    arms = [c for c in results.conditions if any(cell.tsr for cell in c.cells)]
    tasks = sorted({task for c in arms for cell in c.cells if cell.tsr for task in cell.tsr.per_task})
    if not tasks:
        return None
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            for line, arm in enumerate(arms):
                counts = [c.tsr.per_task[task] for c in arm.cells if c.tsr and task in c.tsr.per_task]
                if not counts:
                    continue
                rate = sum(c.successes for c in counts) / sum(c.episodes for c in counts)
                axes.plot(rate, line, "o", markersize=8, color=colours(results)[arm.id], clip_on=False)
                apart = line + (np.arange(len(counts)) - (len(counts) - 1) / 2) * 0.16  # so that equal seeds show
                rates = [c.successes / c.episodes for c in counts]
                axes.plot(rates, apart, "o", markersize=3.2, color=INK, clip_on=False)
            _lines(axes, [arm.id for arm in arms])
            axes.set_title(f"task {task}", fontsize=9)
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        figure.supxlabel("success; a small point is one seed", fontsize=9)

    return _svg(draw, (7, rows * (0.75 + 0.26 * len(arms)) + 0.3))


def watched_chart(results: Results) -> bytes | None:
    """Overlap, drift and entropy of the maps while training went on, a line per cell; None if nothing was watched."""
    panels = {"aos": "AOS", "drift": "drift since the check before", "entropy": "entropy (1 is flat)"}
    watched = [(c.id, cell.watched) for c in results.conditions for cell in c.cells if cell.watched]
    drawn = {
        key: name
        for key, name in panels.items()
        if any(getattr(w, key) is not None for _, seen in watched for w in seen)
    }
    if not drawn:
        return None

    def draw(figure: Figure) -> None:
        named: set[str] = set()
        row = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (key, name) in zip(row, drawn.items(), strict=True):
            for arm, seen in watched:
                points = [(w.step, getattr(w, key)) for w in seen if getattr(w, key) is not None]
                x, y = zip(*points, strict=True) if points else ((), ())
                label = None if arm in named else arm
                axes.plot(x, y, marker="o", markersize=2.5, linewidth=1.2, color=colours(results)[arm], label=label)
                named.add(arm)
            chances = [w.aos_chance for _, seen in watched for w in seen if w.aos_chance is not None]
            if key == "aos" and chances:
                axes.axhline(float(np.mean(chances)), color=INK, linestyle="--", linewidth=1, label="chance")
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("training step")
            axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=6)

    return _svg(draw, (7, 2.9))


def causal_chart(results: Results) -> bytes | None:
    """How far actions move when something is hidden, the control among it; None if not measured."""
    kinds = {"target": "o", "distractor": "s", "destination": "^", "control": "x"}
    arms = [c for c in results.conditions if c.causal]
    if not arms:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for line, arm in enumerate(arms):
            for effect in arm.causal:
                row = line + (list(kinds).index(effect.occluded) - 1.5) * 0.18
                colour = INK if effect.occluded == "control" else colours(results)[arm.id]
                axes.plot([effect.shift.low, effect.shift.high], [row, row], color=colour, linewidth=1.6)
                axes.plot(effect.shift.mean, row, kinds[effect.occluded], color=colour, markersize=5)
        for kind, marker in kinds.items():
            axes.plot([], [], marker, color=INK, label="elsewhere (control)" if kind == "control" else kind)
        _rows(axes, arms)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.set_xlabel("shift of the actions when it is hidden, 95 % interval")
        figure.legend(loc="outside upper left", ncols=4)

    return _svg(draw, (7, 0.95 + 0.62 * len(arms)))


def overlap_chart(results: Results) -> bytes | None:
    """AOS of each arm between its chance level and its ceiling, and its k = g variant; None if not measured."""
    arms = [(c, c.aos, c.grounding) for c in results.conditions if c.aos and c.grounding]
    if not arms:
        return None

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for row, (condition, aos, means) in enumerate(arms):
            colour = colours(results)[condition.id]
            _point(left, row, aos.mean, aos.low, aos.high, colour)
            _tick(left, row, aos.chance, INK, "--")
            _tick(left, row, aos.ceiling, INK, "-")
            if means.aos_g is not None and means.aos_g_chance is not None:
                right.plot(means.aos_g, row, "o", markersize=7, color=colour, clip_on=False)
                _tick(right, row, means.aos_g_chance, INK, "--")
                _tick(right, row, 1.0, INK, "-")
        left.plot([], [], color=INK, linestyle="--", label="chance")
        left.plot([], [], color=INK, linestyle="-", label="ceiling")
        _rows(left, [c for c, _, _ in arms])
        left.set_xlabel("AOS: top 25 % of patches")
        right.set_xlabel("AOS, k = g: as many as the target")
        for axes in (left, right):
            axes.set_xlim(left=0.0)
            axes.grid(visible=True, axis="x")
            axes.tick_params(axis="y", length=0)
            axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=2)

    return _svg(draw, (7, 0.95 + 0.42 * len(arms)))


def time_chart(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Times of the bench: a point for each of the rows, its median with p5 to p95, on a logarithmic axis (ms)."""
    named = sorted({(row["section"], row["backbone"]) for row in rows}, key=lambda key: key)
    colour = {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(named)}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            _point(axes, place, row["median"], row["p5"], row["p95"], colour[row["section"], row["backbone"]])
        labels = [f"{row['section']}, {row['backbone']}: {row['case']}" for row in rows]
        _lines(axes, labels)
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds, 5th to 95th percentile")

    return _svg(draw, (8, 0.9 + 0.26 * len(rows)))


def _point(axes: Axes, row: int, value: float, low: float, high: float, colour: str) -> None:
    """A point and its whisker; at zero the point is there in full."""
    axes.plot([low, high], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt")
    axes.plot(value, row, "o", markersize=7, color=colour, markeredgecolor=INK, clip_on=False, zorder=3)


def _tick(axes: Axes, row: int, value: float, colour: str, style: str) -> None:
    axes.plot([value, value], [row - 0.4, row + 0.4], color=colour, linewidth=1.3, linestyle=style)


def _rows(axes: Axes, conditions: Sequence[ConditionResult]) -> None:
    _lines(axes, [f"{c.id}  {c.name}" for c in conditions])


def _lines(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def stage_chart(results: Results) -> bytes | None:
    """How far episodes of each arm and floor got, from approaching to success; None if no stages were recorded."""
    steps = ("approached", "grasped", "lifted", "placed")

    def shares(found: ConditionResult | Floor) -> list[tuple[int, float]]:
        values = [getattr(found.stages, s) for s in steps] + [found.tsr.rate if found.tsr else None]
        return [(i, v) for i, v in enumerate(values) if v is not None]

    lines = [(c.id, shares(c)) for c in results.conditions if c.stages]
    floors = [(f"{readable(f.id)} {f.condition or ''}".strip(), shares(f)) for f in results.floors if f.stages]
    if not lines:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, known), style in zip(floors, itertools.cycle(("--", "-.", ":", (0, (1, 3))))):
            axes.plot(*zip(*known, strict=True), linestyle=style, linewidth=1, color=INK, label=name)
        for name, known in lines:
            axes.plot(*zip(*known, strict=True), marker="o", color=colours(results)[name], label=name)
        axes.set_xticks(range(5), [*steps, "success"])
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        axes.set_ylabel("share of episodes")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=4)

    return _svg(draw, (7, 3.2))


def curves_chart(results: Results, runs: Sequence[Run]) -> bytes | None:
    """Action and reconstruction loss over training steps, one line per cell; None if there is nothing to draw.

    Reads ``step``, ``action_loss``, ``held_out_action_loss`` (dashed) and ``reconstruction_loss`` of each record.
    """
    panels = (("action_loss", "held_out_action_loss"), ("reconstruction_loss",))
    drawn = [keys for keys in panels if any(keys[0] in record for run in runs for record in run.records)]
    if not drawn:
        return None

    def draw(figure: Figure) -> None:
        row = figure.subplots(1, len(drawn), squeeze=False)[0]
        named: set[str] = set()
        for axes, keys in zip(row, drawn, strict=True):
            for run in runs:
                for key, style in zip(keys, ("-", "--"), strict=False):
                    points = [(r["step"], r[key]) for r in run.records if r.get(key) is not None]
                    label = None if run.condition in named or not points else run.condition
                    named |= {label} if label else set()
                    x, y = zip(*points, strict=True) if points else ((), ())
                    colour = colours(results).get(run.condition, INK)
                    axes.plot(x, y, linestyle=style, linewidth=1.2, color=colour, label=label)
            axes.set_title(readable(keys[0]), fontsize=9)
            axes.set_xlabel("training step")
            axes.grid(axis="y")
        row[0].plot([], [], color=INK, linestyle="--", label="held out")
        figure.legend(loc="outside upper left", ncols=len(named) + 1)

    return _svg(draw, (7, 2.9))
