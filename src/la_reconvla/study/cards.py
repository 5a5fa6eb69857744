"""What the page of a repository says of a policy, a study or demonstrations: a head for machines, text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData, RepoCard

from la_reconvla import layout
from la_reconvla.analysis.intervals import wilson
from la_reconvla.analysis.summaries import rate
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import KNOWN, Pretrained
from la_reconvla.conditions import find_condition
from la_reconvla.data.checking import described
from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.episodes import View, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.robot import LIBERO_ACTIONS
from la_reconvla.sim.collection_folder import CONFIG as COLLECTION
from la_reconvla.sim.collection_folder import SUMMARY, read_summary
from la_reconvla.storage import read_json, read_jsonl
from la_reconvla.study.heldout import read_held_out
from la_reconvla.study.results import read_results
from la_reconvla.study.shareable import LEROBOT, Kind
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.run_folders import public_name
from la_reconvla.training.trackers import METRICS

OURS = "apache-2.0"  # of what this package made from nothing but its own weights and the simulator
TAGS = ("robotics", "vision-language-action", "la-reconvla")
SIMULATED = (
    "Trained and evaluated in simulation only (LIBERO, MuJoCo), on demonstrations of "
    "the tasks above. Nothing is known of other tasks, scenes, cameras or robots."
)
LIMITS = (
    "Do not run it on a real robot: nothing here limits forces, speeds or the workspace.",
    "One seed. A success rate means something only above its floors: the same policy shown a grey image or told "
    "another instruction, and a demonstration replayed blindly.",
    "An attention map shows where the words look, not why the policy acts.",
)


@dataclass(frozen=True)
class Labels:
    """What the files do not say.

    Attributes:
        repo: name of the repository, for the commands on its page.
        license: id of the licence, as the hub spells it; None if nobody has said it.
        datasets: repositories of the demonstrations that it was trained on.
    """

    repo: str = "user/name"
    license: str | None = None
    datasets: tuple[str, ...] = ()


def policy_card(run: Path, config: PolicyConfig, labels: Labels) -> RepoCard:
    """Data, condition, results, limits.

    Args:
        run: the run, for its curves and evaluations.
        config: of what is published.
        labels: what they do not say.
    """
    backbone, full = config.backbone, _source(PolicyConfig.load(run))
    source = None if full is None else public_name(full)
    libero = config.bins.space == LIBERO_ACTIONS and config.inputs.orientation == "mirrored"
    data = ModelCardData(
        license=labels.license,
        base_model=source if source == full else None,
        datasets=list(labels.datasets) or None,
        library_name="la-reconvla",
        pipeline_tag="robotics",
        tags=[*TAGS, *(["libero"] if libero else [])],
    )
    arm, train = find_condition(config.condition), read_jsonl(run / METRICS)
    extra = arm.reconstruction if arm else None
    lines = [
        f"# LA-ReconVLA, condition {config.condition}, seed {config.seed}",
        "",
        "A vision-language-action policy: an image and an instruction in, a chunk of actions of "
        f"{len(config.bins.space.names)} numbers out.",
        "",
        "## Condition",
        "",
        f"- {config.condition}: {arm.name if arm else 'not among the named ones'}"
        + (f"; {_objective(extra)}" if extra else ""),
        f"- backbone: {source or _small(config)}"
        + (f" at {backbone.revision}" if isinstance(backbone, Pretrained) and full == backbone.source else ""),
        *([f"- what trained: {_trained(PolicyConfig.load(run))}"] if source else []),
        f"- actions in a chunk: {backbone.chunk}, {config.decoding} decoding; robot state: {backbone.proprio}; "
        f"wrist camera: {backbone.wrist}",
        f"- an action: {config.bins.space}",
        f"- pictures: {' and '.join(config.inputs.cameras[: 1 + backbone.wrist])}, {config.inputs.orientation}",
        "",
        "## Data",
        "",
        f"- {len(config.train_starts)} initial states of {', '.join(_suites(config)) or 'an unnamed suite'}",
        *_origin(config),
        f"- frames of {config.image_size} px, render quality '{config.quality}', hash {config.data_hash}",
        "",
        "## Results",
        "",
        *(list(_results(run)) or ["- none: it has not been evaluated in closed loop"]),
        *([f"- training loss of the actions at the end: {train[-1]['action_loss']:.3f}"] if train else []),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in ((SIMULATED,) if libero else ()) + LIMITS),
        *([f"- {source} has a licence of its own; it holds for these weights too."] if source else []),
        "",
        "## Use",
        "",
        "```bash",
        f"la-reconvla share pull {labels.repo} --out policy",
        *(["la-reconvla eval policy --episodes 20 --floors"] if libero else []),
        "```",
        "",
        "```python",
        "from la_reconvla.training.checkpoint import load_policy",
        "",
        f'policy, config = load_policy("{labels.repo}")  # or the folder',
        "```",
        "",
    ]
    return ModelCard(_page(data, lines))


def require_finished(study: Path) -> None:
    """Raise a `UserError` for a study without results."""
    if missing := [name for name in (layout.RESULTS, layout.TABLES) if not (study / name).exists()]:
        raise UserError(
            f"{study} has no {missing[0]}: finish it with the command that made it, which goes on where it was"
            + (" (`la-reconvla study report` writes tables.md)" if missing == [layout.TABLES] else "")
        )


def study_card(study: Path, weights: bool, labels: Labels) -> RepoCard:
    """What was asked and measured: the tables of a finished study, with their intervals."""
    held = read_results(study / layout.RESULTS).study
    tables = (study / layout.TABLES).read_text(encoding="utf-8")
    source = _source_of(study)
    data = DatasetCardData(
        license=labels.license,
        pretty_name=f"LA-ReconVLA, study {held.preset} on {held.suite or 'recorded demonstrations'}",
        task_categories=["robotics"],
        tags=[*TAGS, "evaluation", *(["libero"] if held.suite.startswith("libero") else [])],
        base_model=source if source and not Path(source).is_dir() else None,
        datasets=list(labels.datasets) or None,
    )
    lines = [
        "A study of LA-ReconVLA: does a robot policy act better when it reconstructs what its instruction looks at? "
        "Arms start from equal weights and see equal batches. Here are its configuration, every episode, records on "
        f"held-out frames, training curves{', the weights' if weights else ''} and results. Demonstrations: SHA-256 "
        f"{held.data_hash or 'not recorded'}.",
        "",
        "```bash",
        f"la-reconvla share pull datasets/{labels.repo} --out study",
        "la-reconvla study report study                      # draws report.html",
        "la-reconvla study report study --csv episodes.csv   # every episode",
        "```",
        "",
        tables.strip(),
        "",
    ]
    return DatasetCard(_page(data, lines))


def data_card(folder: Path, kind: Kind, opened: Demonstrations, labels: Labels) -> RepoCard:
    """What demonstrations hold: episodes, cameras, instructions, the range of actions, how often the expert failed."""
    suites = sorted({e.suite for e in opened.episodes if e.suite})
    count = len(opened.episodes)
    data = DatasetCardData(
        license=labels.license,
        pretty_name=f"{count} demonstrations, {', '.join(suites) or 'recorded elsewhere'}",
        task_categories=["robotics"],
        size_categories=["n<1K" if count < 1000 else "1K<n<10K" if count < 10_000 else "10K<n<100K"],
        tags=[*TAGS, "demonstrations", *(["LeRobot"] if kind is LEROBOT else []), *(["libero"] if suites else [])],
    )
    lines = [
        f"# {data.pretty_name}",
        "",
        f"Format: {'LeRobotDataset' if kind is LEROBOT else 'HDF5 in the layout of LIBERO, one file a task'}. "
        f"Render quality '{opened.quality}', SHA-256 {opened.hash}.",
        "",
        "```text",
        *described(opened),
        "```",
        "",
        *_attempts(folder),
        "## Use",
        "",
        "```bash",
        f"la-reconvla share pull datasets/{labels.repo} --out demos",
        "la-reconvla train --demonstrations demos --condition C4 --preset small --out runs/one",
        "```",
        "",
    ]
    return DatasetCard(_page(data, lines))


def policy_licence(config: PolicyConfig) -> str | None:
    """The licence that follows from what a policy was made of; None where only its maker can say."""
    if config.origin is not None and not config.origin.starts:
        return None
    if isinstance(config.backbone, Pretrained):
        return "gemma" if config.backbone.source in KNOWN else None
    return OURS if config.train_starts else None


def study_licence(study: Path, weights: bool) -> str | None:
    """The same of a study: numbers and pictures of the simulator are our own, weights as those of a policy."""
    if read_results(study / layout.RESULTS).study.suite == "recorded":
        return None
    source = _source_of(study) if weights else None
    return OURS if source is None else "gemma" if source in KNOWN else None


def data_licence(opened: Demonstrations) -> str | None:
    """The same of demonstrations: those of the scripted expert name their starts."""
    return OURS if all(e.start_id for e in opened.episodes) else None


def _page(data: ModelCardData | DatasetCardData, lines: Sequence[str]) -> str:
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)


def _source_of(study: Path) -> str | None:
    """What a study's pretrained backbone was read from, if it has one: a name on the hub, or a folder."""
    return read_json(study / layout.STUDY)["config"].get("backbone", {}).get("source")


def _attempts(folder: Path) -> list[str]:
    """How often the scripted expert succeeded, of a collection."""
    if not ((folder / SUMMARY).exists() and (folder / COLLECTION).exists()):
        return []
    lines = [
        "## The expert's attempts",
        "",
        "| task | recorded | failed | success (95 % interval) |",
        "|---|---|---|---|",
    ]
    for task in read_summary(folder).tasks:
        failed = sum(task.failed.values())
        tried = task.episodes + task.dropped + failed
        spread = wilson(tried - failed, tried)
        share = f"{1 - failed / tried:.0%} ({spread.low:.0%} to {spread.high:.0%})"
        lines.append(f"| {task.name} | {task.episodes} | {failed} | {share} |")
    return [*lines, ""]


def _objective(extra: Reconstruction) -> str:
    place = "" if extra.mask is None else f", masked at the {extra.mask_at}"
    lamda = getattr(extra.weight, "label", extra.weight)
    return f"{extra.region.label}, {extra.reconstruction_head.label} head, lambda {lamda}{place}"


def _source(config: PolicyConfig) -> str | None:
    return config.backbone.source if isinstance(config.backbone, Pretrained) else None


def _trained(config: PolicyConfig) -> str:
    b: Any = config.backbone
    how = f"LoRA of rank {b.lora.rank}" if b.lora else "all weights"
    where = "" if b.freeze.last is None else f" of the last {b.freeze.last} layers"
    seeing = "the vision tower stayed" if b.freeze.vision else "the vision tower too"
    return f"{how}{where} of the language model; {seeing}; base in {b.quantize or b.dtype}"


def _origin(config: PolicyConfig) -> list[str]:
    """The run that its training started from."""
    if (origin := config.origin) is None:
        return []
    return [f"- it began with the weights {origin.weights_hash} of {origin.run}: {len(origin.starts)} further states"]


def _small(config: PolicyConfig) -> str:
    """What a small backbone began with."""
    began = config.backbone.weights if isinstance(config.backbone, SmallPaliGemma) else None
    return f"a small PaliGemma {f'that began as {public_name(began)}' if began else 'trained from random weights'}"


def _suites(config: PolicyConfig) -> list[str]:
    """Suite and task of each start, with how many there are."""
    counts: dict[str, int] = {}
    for start in config.train_starts:
        suite, task, placement, *_ = start.split("/")
        name = f"{suite} task {task} ({placement})"
        counts[name] = counts.get(name, 0) + 1
    return [f"{name}: {count}" for name, count in sorted(counts.items())]


def _other_terms(folder: Path) -> str:
    """The step limit and the instruction of an evaluation that took the place of its tasks' own."""
    if not (path := folder / layout.EVALUATION).exists():
        return ""
    held = read_json(path)
    limit, told = held.get("settings", {}).get("max_steps"), held.get("instruction")
    return (f", at most {limit} steps" if limit else "") + (f", told '{told}'" if told else "")


def _results(run: Path) -> Iterator[str]:
    """Success of each evaluation, action error and attention on held-out frames, from the files of the run."""
    for path in sorted(run.rglob(layout.EPISODES)):
        if found := rate(read_episodes(path.parent)):
            where = path.parent.relative_to(run) if path.parent != run else "the study's starts"
            where = f"{where}{_other_terms(path.parent)}"
            yield (
                f"- success, {where}: {found.successes} of {found.episodes} episodes, {100 * found.rate:.1f} % "
                f"(95 % interval {100 * found.low:.1f} to {100 * found.high:.1f})"
            )
    if (run / layout.HELD_OUT).exists():
        found = read_held_out(run)
        names: dict[View, str] = {"true": "true view", "grey_image": "grey image", "wrong_instruction": "other words"}
        for view, name in names.items():
            if errors := [record.action_error for record in found.views.get(view, ())]:
                yield f"- action error on held-out frames, {name}: {np.mean(errors):.3f} of the action range"
