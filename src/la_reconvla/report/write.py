"""The report of a study: one HTML file that holds everything it shows, drawn from `results.json` and what that names.

What is missing is said where it would have stood; nothing is fetched when the page is opened. ``tables.md`` beside it
holds the numbers as text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from la_reconvla import layout
from la_reconvla.analysis.comparisons import Comparison
from la_reconvla.analysis.declaration import CHECKS, declared_in
from la_reconvla.analysis.measures import STAGES
from la_reconvla.analysis.results import ConditionResult, Results, Study, Timeline
from la_reconvla.analysis.verdicts import reasons
from la_reconvla.report import charts, evidence_tables, story
from la_reconvla.report.charts import Run
from la_reconvla.report.findings import findings
from la_reconvla.report.limits import limits
from la_reconvla.report.next_step import next_step, same_power, step_table
from la_reconvla.report.page import MAX_BYTES, Embedded, Shelf, fill
from la_reconvla.report.phrases import EFFECTS_SAID, REGIONS, RULES_SAID, headline, leading, reasons_of_first_line
from la_reconvla.report.player import COLOURS, playlist
from la_reconvla.report.recount import recounted
from la_reconvla.report.summary import markdown
from la_reconvla.report.tables import (
    FLOORS_SAID,
    HEAD_NAMES,
    exploratory,
    grid_table,
    loss_table,
    other_starts_tables,
    retained_table,
    sequence_tables,
    wording_table,
)
from la_reconvla.storage import read_jsonl, write_content
from la_reconvla.study.results import results_of

PAGES = {"": bytes, "-dark": charts.for_dark_page}
ERROR_FLOORS = {
    "grey_image": "with a grey image",
    "wrong_instruction": "with a wrong instruction",
    "no_image": "of a policy trained without image",
}


def write_report(run_dir: Path | str) -> Path:
    """Draw ``report.html`` and ``tables.md`` from ``results.json`` in `run_dir` and the files that it names there.

    Args:
        run_dir: folder of a study.

    Returns:
        Path of the report.

    Raises:
        UserError: there are no valid results, or they name a file outside of the folder.
    """
    folder = Path(run_dir)
    results = results_of(folder)
    text = markdown(results, evidence_tables.all_tables(results))
    text += "\n## What this does not show\n\n" + "".join(f"- {said}\n" for said in limits(results))
    for name, content in ((layout.REPORT, render(results, folder)), (layout.TABLES, text)):
        write_content(folder / name, content)
    return folder / layout.REPORT


def render(results: Results, folder: Path, room: int = MAX_BYTES) -> str:
    """The page as text; files beyond `room` bytes are left out and named. Errors as in `write_report`."""
    shelf = Shelf(folder, room)
    runs, missing_curves = _runs(results, folder)
    drawn = {name: shelf.chart(svg) for name, svg in drawings(results, runs).items()}
    pictures = {
        kind: [(p, shelf.file(p.path)) for p in results.pictures if p.kind == kind]
        for kind in ("attention", "reconstruction", "training")
    }
    declared, timelines = declared_in(results.study), sliders(results, shelf)
    playing = playlist(results, shelf)  # films take what room the rest leaves
    values = {
        "results": results,
        "study": results.study,
        "verdict": leading(results),
        "headline": headline(results),
        "reason": reasons_of_first_line(results),
        "dots": story.dots(results, folder),
        "claims": story.claims(results),
        "checks": story.checks(results),
        "not_asked": story.not_asked(results),
        "findings": findings(results),
        "step": next_step(results),
        "step_rows": step_table(results),
        "same_power": same_power(results),
        "said": results.study.said or {task: (text,) for task, text in results.study.tasks.items()},
        "names": {arm.id: story.marked(arm.id, results.conditions) for arm in results.conditions},
        "outcomes": story.OUTCOMES,
        "check_ids": CHECKS,
        "regions": REGIONS,
        "reasons": {h.id: reasons(results, h) for h in results.hypotheses},
        "family": results.family,
        "undone": [key for key in declared.family if results.comparison(*key) is None],
        "exploratory": exploratory(results),
        "floor_comparisons": results.against_floors("tsr"),
        "errors": [_error_row(results, c) for c in results.conditions if c.action_error],
        "error_floors": ERROR_FLOORS,
        "tasks": sorted({t for c in results.conditions for cell in c.cells if cell.tsr for t in cell.tsr.per_task}),
        "per_task": per_task,
        "stage_names": STAGES,
        "sequences": sequence_tables(results),
        "grid": grid_table(results),
        "heads": heads(results),
        "maps": evidence_tables.maps_tables(results),
        "aid": evidence_tables.aid_table(results),
        "causal": evidence_tables.causal_table(results),
        "counterfactual": evidence_tables.counterfactual_table(results),
        "following": evidence_tables.following_table(results),
        "elsewhere": other_starts_tables(results),
        "wordings": wording_table(results),
        "losses": loss_table(results),
        "retained": retained_table(results),
        "floors_said": FLOORS_SAID,
        "rule_said": RULES_SAID[declared.interval],
        "effects_said": EFFECTS_SAID,
        "head_names": HEAD_NAMES,
        "power": evidence_tables.power_table(results),
        "leakage": evidence_tables.leakage_table(results),
        "time": evidence_tables.time_table(results),
        "cost": evidence_tables.cost_table(results),
        "charts": drawn,
        "missing_curves": missing_curves,
        "timelines": timelines,
        "pictures": pictures,
        "first_pair": story.first_pair(results, playing),
        "playlist": playing,
        "colours": COLOURS,
        "declaration": declaration(results.study),
        "recounted": recounted(results, folder),
        "limits": limits(results),
    }
    return fill("report.html.j2", values, marked=lambda text: story.marked(text, results.conditions))


def drawings(results: Results, runs: Sequence[Run]) -> dict[str, bytes | None]:
    """All charts by name, as SVG for a light page; None for one of what was not measured."""
    return {
        "success": charts.success_chart(results),
        "tasks": charts.task_chart(results),
        "stages": charts.stage_chart(results),
        "overlap": charts.overlap_chart(results),
        "causal": charts.causal_chart(results),
        "curves": charts.curves_chart(results, runs),
        "watched": charts.watched_chart(results),
    }


def write_figures(run_dir: Path | str, out: Path) -> list[Path]:
    """Write the report's charts into `out`, each as ``NAME.svg`` for a light page and ``NAME-dark.svg``.

    Returns:
        Paths of the files.

    Raises:
        UserError: as `write_report`.
    """
    results = results_of(run_dir)
    drawn = {name: svg for name, svg in drawings(results, _runs(results, Path(run_dir))[0]).items() if svg}
    files = {f"{name}{ending}.svg": of(svg) for name, svg in drawn.items() for ending, of in PAGES.items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_content(out / name, content)
    return [out / name for name in files]


def _runs(results: Results, folder: Path) -> tuple[list[Run], list[str]]:
    """Training curves of all cells, and the names of those that are not there."""
    runs, missing = [], []
    for condition in results.conditions:
        for cell in condition.cells:
            if cell.metrics is not None and (folder / cell.metrics).is_file():
                runs.append(Run(condition.id, cell.seed, read_jsonl(folder / cell.metrics)))
            else:
                missing.append(f"{condition.id} seed {cell.seed}")
    return runs, missing


def declaration(study: Study) -> str:
    """Whether the hypotheses that the page shows are those that were declared, judged by their hash."""
    if not study.hypotheses:
        return "No declaration was kept with this study."
    if not study.hypotheses_hash:
        return "No hash of it was written when the study began, so nothing shows that it has not changed since."
    found = hashlib.sha256(study.hypotheses.encode()).hexdigest()
    if found == study.hypotheses_hash.removeprefix("sha256:"):
        return "The hash, written when the study began, is that of the text below."
    return (
        f"The hash does not belong to the text below, whose SHA-256 is {found}: it was changed after the study began."
    )


# ---------------------------------------------------------------- pictures in time


@dataclass(frozen=True)
class Row:
    """One line of the slider's pictures: all steps of one arm's maps or of its reconstructions."""

    arm: str
    what: str
    pictures: list[Embedded]


@dataclass(frozen=True)
class Slider:
    """Arms that show one episode at the same steps; `labels` describes each step."""

    first: Timeline
    labels: list[str]
    frames: Row | None
    arms: list[tuple[str, list[Row]]]


def sliders(results: Results, shelf: Shelf) -> list[Slider]:
    """A slider for each episode; in a study of ours there is one."""
    groups: dict[tuple[str, tuple[int, ...]], list[Timeline]] = {}
    for line in results.timelines:
        groups.setdefault((line.episode, line.steps), []).append(line)
    masks = {c.id: c.mask for c in results.conditions}

    def rows(arm: str, found: dict[str, tuple[str, ...]]) -> list[Row]:
        return [Row(arm, what, [shelf.file(path) for path in paths]) for what, paths in found.items() if paths]

    def arm_rows(line: Timeline) -> list[Row]:
        painted = f"reconstruction ({masks.get(line.condition) or 'its picture'})"
        return rows(line.condition, {"attention": line.attention, painted: line.reconstruction})

    return [
        Slider(
            first := group[0],
            [", ".join(filter(None, said)) for said in zip_longest((f"step {s}" for s in first.steps), first.phases)],
            next(iter(rows("", {"camera": first.frames})), None),
            [(line.condition, arm_rows(line)) for line in group],
        )
        for group in groups.values()
    ]


# ---------------------------------------------------------------- words and numbers


def per_task(condition: ConditionResult, task: str) -> str:
    """Successes of one task over all seeds, as "7 / 18"."""
    counts = [c.tsr.per_task[task] for c in condition.cells if c.tsr and task in c.tsr.per_task]
    return f"{sum(c.successes for c in counts)} / {sum(c.episodes for c in counts)}" if counts else "–"


def _error_row(results: Results, condition: ConditionResult) -> tuple[ConditionResult, list[Comparison | None]]:
    """An arm with its action error against each floor."""
    return condition, [results.comparison(condition.id, floor, "action_error") for floor in ERROR_FLOORS]


def heads(results: Results) -> str:
    """How far the two heads of the grid cost the same, from the numbers; and what else differs between them."""
    sizes = {
        kind: next((c for c in results.conditions if c.reconstructor == kind and c.head_operations), None)
        for kind in ("mae", "diffusion")
    }
    one, other = sizes["mae"], sizes["diffusion"]
    said = "The heads differ in their target too: the MAE decoder predicts all pixels of a patch, "
    said += "the diffusion head what the limits below state; so a difference between heads may be one between targets."
    if not (one and other and one.head_parameters and other.head_parameters and one.head_operations):
        return said
    parameters = other.head_parameters / one.head_parameters
    operations = (other.head_operations or 0) / one.head_operations
    return (
        f"The diffusion head has {parameters:.2f} times the parameters of the MAE decoder and takes {operations:.2f} "
        f"times its operations in a training step (the backbone, which is the same, not counted). {said}"
    )
