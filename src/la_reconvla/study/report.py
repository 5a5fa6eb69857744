"""The report of a study: one HTML file that holds everything it shows, drawn from `results.json` and what that names.

What is missing is said where it would have stood; nothing is fetched when the page is opened. ``tables.md`` beside it
holds the numbers as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from la_reconvla.errors import UserError
from la_reconvla.storage import atomic_write, read_jsonl
from la_reconvla.study import figures
from la_reconvla.study.declared import HEADLINE, declared_in
from la_reconvla.study.figures import Run, data_uri
from la_reconvla.study.results import STAGES, Comparison, ConditionResult, Results, read_results
from la_reconvla.study.statistics import FEW_SEEDS
from la_reconvla.study.tables import (
    duration,
    grid_table,
    headline,
    markdown,
    named,
    number,
    p_value,
    paired,
    percent,
    points,
    reason,
    scenes,
)

RESULTS, REPORT, TABLES = "results.json", "report.html", "tables.md"
FEW_SCENES = 8  # below, a bootstrap over scenes is known to give intervals that are too narrow
MAX_BYTES = 14_000_000  # of pictures and videos, encoded; the page stays below 15 MB and opens on a phone
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
    results = read_results(folder / RESULTS)
    for name, text in ((REPORT, render(results, folder)), (TABLES, markdown(results))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / REPORT


def render(results: Results, folder: Path) -> str:
    """The page as text. Arguments and errors as in `write_report`."""
    shelf = _Shelf(folder)
    runs, missing_curves = _runs(results, folder)
    charts = {
        "success": shelf.chart(figures.success_chart(results)),
        "stages": shelf.chart(figures.stage_chart(results)),
        "overlap": shelf.chart(figures.overlap_chart(results)),
        "curves": shelf.chart(figures.curves_chart(results, runs)),
    }
    pictures = {
        kind: [(p, shelf.file(p.path)) for p in results.pictures if p.kind == kind]
        for kind in ("attention", "reconstruction")
    }
    declared = declared_in(results.study)
    environment = Environment(
        loader=PackageLoader("la_reconvla.study", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        percent=percent,
        points=points,
        number=number,
        p=p_value,
        duration=duration,
        readable=figures.readable,
        paired=paired,
        scenes=scenes,
        named=named,
    )
    return environment.get_template("report.html.j2").render(
        results=results,
        study=results.study,
        verdict=results.hypothesis(HEADLINE),
        headline=headline(results),
        reason=reason(results),
        comparison=results.comparison("C4", "C2", "tsr"),
        family=[c for c in results.comparisons if c.p_holm is not None],
        undone=[key for key in declared.family if results.comparison(*key) is None],
        exploratory=[
            c for c in map(lambda key: results.comparison(*key), declared.exploratory) if c and c.p_holm is None
        ],
        floor_comparisons=results.against_floors("tsr"),
        errors=[_error_row(results, c) for c in results.conditions if c.action_error],
        error_floors=ERROR_FLOORS,
        tasks=sorted({t for c in results.conditions for cell in c.cells if cell.tsr for t in cell.tsr.per_task}),
        per_task=per_task,
        stage_names=STAGES,
        same_within=declared.same_within,
        grid=grid_table(results),
        heads=heads(results),
        charts=charts,
        missing_curves=missing_curves,
        pictures=pictures,
        videos=[(v, shelf.file(v.path)) for v in results.videos],
        limits=limits(results),
    )


# ---------------------------------------------------------------- embedding


@dataclass(frozen=True)
class Embedded:
    """A file of the study as the page holds it: its ``data:`` address, or why it has none."""

    uri: str | None
    why: str = ""


class _Shelf:
    """Turns files and charts into ``data:`` addresses until the page is full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.left = MAX_BYTES

    def file(self, name: str) -> Embedded:
        """A file of the study's folder."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise UserError(
                f"{RESULTS} names {name}, which is outside of {self.folder}: only files of the study are shown"
            )
        if not path.is_file():
            return Embedded(None, f"{name} is missing from the study's folder.")
        uri_size = 4 * path.stat().st_size // 3
        if uri_size > self.left:
            return Embedded(None, f"{name} is left out to keep this page small; it lies in the study's folder.")
        self.left -= uri_size
        return Embedded(data_uri(path.read_bytes(), path.suffix))

    def chart(self, svg: bytes | None) -> tuple[str, str] | None:
        """A chart for a light and for a dark page; None if there is none."""
        if svg is None:
            return None
        addresses = data_uri(svg, ".svg"), data_uri(figures.for_dark_page(svg), ".svg")
        self.left -= sum(map(len, addresses))
        return addresses


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


# ---------------------------------------------------------------- words and numbers


def per_task(condition: ConditionResult, task: str) -> str:
    """Successes of one task over all seeds, as "7 / 18"."""
    counts = [c.tsr.per_task[task] for c in condition.cells if c.tsr and task in c.tsr.per_task]
    return f"{sum(c.successes for c in counts)} / {sum(c.episodes for c in counts)}" if counts else "–"


def _error_row(results: Results, condition: ConditionResult) -> tuple[ConditionResult, list[Comparison | None]]:
    """An arm with its action error against each floor."""
    return condition, [results.comparison(condition.id, floor, "action_error") for floor in ERROR_FLOORS]


def limits(results: Results) -> list[str]:
    """What the study does not show, as far as its own numbers tell."""
    said = []
    seeds = min((len(c.cells) for c in results.conditions), default=0)
    if seeds == 1:
        said.append(
            "Each arm was trained once. How much success varies between trainings of the same arm was not measured, "
            "so a difference between arms may be luck."
        )
    elif seeds < FEW_SEEDS:
        said.append(
            f"Each arm was trained {seeds} times: so few say little about how much training varies, and the "
            "intervals of arms are as wide as that makes them."
        )
    if results.study.placement == "wide":
        said.append(
            "Two starts share each scene and its image, one for either bowl. Intervals of success count the two as "
            "independent and are therefore somewhat too narrow."
        )
    said.extend(_few_scenes(results))
    said.extend(_other_channels(results))
    said.extend(_weak_arms(results))
    said.append("Attention maps are not causes: a map on the object does not prove that the action depends on it.")
    said.append("Everything happened in simulation, with rendered images and a simulator's contact physics.")
    said.append(
        "Only comparisons of the declared family are corrected for their number; intervals elsewhere stand alone."
    )
    if arm := next((c for c in results.conditions if c.id == "R1"), None):
        said.append(reconvla(results, arm))
    else:
        said.append(
            "The ReconVLA arm (diffusion reconstruction of an annotated crop) is not part of this study, so nothing "
            "here compares with it."
        )
    return [*said, *results.study.limits]


def reconvla(results: Results, arm: ConditionResult) -> str:
    """What R1 has of the published ReconVLA, and what not."""
    head = results.study.settings.get("config", {}).get("denoiser", {})
    target = head.get("target", {})
    drawn = "latents of a VAE" if "source" in target else f"{target.get('side') or 'all'} pixels a side of each patch"
    size = f", {arm.head_parameters / 1e6:.1f} M parameters" if arm.head_parameters else ""
    return (
        f"R1 has ReconVLA's region and kind of head on this study's backbone and budget: it draws {drawn} "
        f"({head.get('repeats', '?')} noise levels a sample, lambda {arm.weight}{size}). The published model has 7 "
        "billion parameters, draws latents with 4 noise levels, lambda 1.0 and 64 M parameters, and was pretrained to."
    )


def heads(results: Results) -> str:
    """How far the two heads of the grid cost the same, from the numbers; and what else differs between them."""
    sizes = {
        kind: next((c for c in results.conditions if c.reconstructor == kind and c.head_operations), None)
        for kind in ("mae", "diffusion")
    }
    one, other = sizes["mae"], sizes["diffusion"]
    said = "The heads differ in their target too: the MAE decoder predicts all pixels of a patch, "
    said += "the diffusion head what the limits below say; so a difference between heads may be one between targets."
    if not (one and other and one.head_parameters and other.head_parameters and one.head_operations):
        return said
    parameters = other.head_parameters / one.head_parameters
    operations = (other.head_operations or 0) / one.head_operations
    return (
        f"The diffusion head has {parameters:.2f} times the parameters of the MAE decoder and takes {operations:.2f} "
        f"times its operations in a training step (the backbone, which is the same, not counted). {said}"
    )


def _few_scenes(results: Results) -> list[str]:
    """Held-out frames of so few scenes that their intervals say little."""
    measured = [m.n for c in results.conditions for m in (c.action_error, c.aos, c.aid) if m is not None and m.n]
    measured += [c.scenes for c in results.comparisons if c.scenes]
    if not measured or min(measured) >= FEW_SCENES:
        return []
    return [
        f"Action error and attention were measured on the held-out frames of n = {min(measured)} scenes only. A "
        "bootstrap over so few gives intervals that are too narrow, and other scenes may give other numbers."
    ]


def _other_channels(results: Results) -> list[str]:
    """Arms whose maps are not made of the words' attention."""
    found = {c.id: c.grounding.channel for c in results.conditions if c.grounding and c.grounding.channel}
    other = {arm: figures.readable(channel) for arm, channel in found.items() if channel != "language"}
    if not other:
        return []
    arms = "; ".join(f"{arm}: {channel}" for arm, channel in other.items())
    return [f"The attention maps of these arms are not those of the instruction's words, but a fallback ({arms})."]


def _weak_arms(results: Results) -> list[str]:
    """Arms that were not shown to succeed more often than each floor they were compared with."""
    against = results.against_floors("tsr")
    if not against:
        return ["Success stands beside no floor: what a policy reaches without the image was not measured."]
    weak = [c for c in against if c.low <= 0]
    if not weak:
        return []
    pairs = "; ".join(f"{c.a} and {figures.readable(c.b)}" for c in weak)
    return [f"Success was not shown to be above these floors, so it says little about use of the image there: {pairs}."]
