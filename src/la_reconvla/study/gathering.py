"""What was measured of a finished study, read from its folder, ready to be judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from la_reconvla import kinds, layout
from la_reconvla.analysis import leakage
from la_reconvla.analysis.evidence import Evidence, FloorEvidence, OtherStartsEvidence
from la_reconvla.analysis.frames import FrameRecord
from la_reconvla.analysis.leakage import Layout, Shown, same_state, wide_scene
from la_reconvla.analysis.measures import Leak
from la_reconvla.analysis.results import Pairing, Study
from la_reconvla.analysis.verdicts import NOT_JUDGED
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.conditions import NO_IMAGE, Condition
from la_reconvla.data.boxes import annotator
from la_reconvla.data.demonstrations import Demonstrations, Episode
from la_reconvla.data.samples import patch_coverage, spread_indices
from la_reconvla.data.starts import Start, object_kind
from la_reconvla.episodes import EpisodeRecord, View
from la_reconvla.method.mask import masked_count
from la_reconvla.robot import LIBERO_ACTIONS
from la_reconvla.sim import toy
from la_reconvla.sim.suite_changes import kind_of_wording
from la_reconvla.sim.tasks import Task, base_of, change_of, positions_in
from la_reconvla.storage import read_jsonl
from la_reconvla.study.begun import read_begun
from la_reconvla.study.cells import Cell, samples_of
from la_reconvla.study.evaluations import Evaluations
from la_reconvla.study.floors import VIEWS
from la_reconvla.study.heldout import OTHER_UNIT, UNIT, read_held_out, watched
from la_reconvla.study.parts import boxes_beside, part_masks
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.provenance import now
from la_reconvla.training.held_out import WATCHED
from la_reconvla.training.start_weights import StartWeights
from la_reconvla.training.trackers import METRICS

LAST = (
    *("action_loss", "reconstruction_loss", "held_out_action_loss", "batches"),
    *("held_out_reconstruction_loss", "mean_picture_loss"),
)
"""What the end of a training's log says of it."""
Divided = tuple[Demonstrations, Demonstrations]


# ---------------------------------------------------------------- records


def evidence(cells: Sequence[Cell], evaluations: Evaluations, on_target: np.ndarray) -> Evidence:
    """Everything of one condition, its seeds together; `on_target` as `watched_coverage` gives it."""
    return Evidence(
        episodes=[record for cell in cells for record in evaluations.episodes(cell.folder)],
        frames=_frames(cells, "true"),
        train={cell.seed: _training_facts(cell.folder) for cell in cells},
        metrics={cell.seed: str((cell.folder / METRICS).relative_to(evaluations.folder)) for cell in cells},
        watched={cell.seed: watched(cell.folder, on_target) for cell in cells},
    )


def _frames(cells: Sequence[Cell], view: View) -> list[FrameRecord]:
    return [record for cell in cells for record in read_held_out(cell.folder).views.get(view, ())]


def _training_facts(folder: Path) -> dict[str, Any]:
    lines = read_jsonl(folder / METRICS)
    first = next(line for line in lines if "start" in line)
    rates = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    last = {key: lines[-1].get(key) for key in LAST}
    return {
        "steps": lines[-1]["step"],
        "parameters": int(first["parameters"]),
        "start_weights": first["start"],
        "samples_per_second": float(np.median(rates)),
        **{key: value for key, value in last.items() if value is not None},
    }


def watched_coverage(held_out: Demonstrations, config: StudyConfig) -> np.ndarray:
    """Share of each patch on the target in the held-out samples that trainings are watched on, float32 [m n]."""
    boxes = boxes_beside(held_out, config.gaze)
    if boxes is None and not held_out.episodes[0].instance_names:
        return np.zeros((0, 0), dtype=np.float32)
    samples = samples_of(held_out, config)
    masks = part_masks(samples, spread_indices(len(samples), WATCHED), boxes)
    return patch_coverage(masks[:, 0], config.backbone.grid)


def floors(arms: Sequence[Condition], evaluations: Evaluations, blind: Evidence) -> list[FloorEvidence]:
    """Those of each arm, and those that are no arm's; `blind` is the policy trained without image."""
    found = []
    for arm in arms:
        cells = [cell for cell in evaluations.cells if cell.condition == arm]
        for view in VIEWS:
            episodes: list[EpisodeRecord] = []
            if arm.id == evaluations.config.floor_arm:
                folders = [layout.floor(evaluations.folder, view, arm.id, cell.seed) for cell in cells]
                episodes = [record for folder in folders for record in evaluations.episodes(folder)]
            found.append(FloorEvidence(view, arm.id, episodes, _frames(cells, view)))
    found.append(FloorEvidence("no_image", None, blind.episodes, blind.frames))
    found.append(FloorEvidence("blind_replay", None, evaluations.episodes(evaluations.blind_replay)))
    return found


def other_starts(evaluations: Evaluations) -> list[OtherStartsEvidence]:
    """Episodes on official states, of this suite and of others; seeds of one policy together."""
    found: dict[tuple[str, str], OtherStartsEvidence] = {}
    for place in evaluations.places:
        for e in evaluations.at(place):
            arm, floor, label = e.label.condition, e.label.floor, str(e.label)
            if arm == NO_IMAGE.id:
                arm, floor = None, "no_image"
            before = found.get((place.suite, label))
            records = [*(before.episodes if before else ()), *evaluations.episodes(e.folder)]
            told = {r.start.instruction for r in records}
            found[place.suite, label] = OtherStartsEvidence(
                placement="official",
                label=label,
                episodes=records,
                suite="" if place.home else place.suite,
                change=change_of(place.suite),
                condition=arm if arm in evaluations.config.conditions else None,
                floor=floor,
                wordings={text: kind for text in sorted(told) if (kind := kind_of_wording(text))},
            )
    return list(found.values())


# ---------------------------------------------------------------- leakage, and what the study is


def shown_by(starts: Iterable[Start]) -> Shown:
    """What evaluation starts show."""
    starts = list(starts)
    facts = [(s.id, s.suite, s.task, s.target, s.instruction, np.asarray(s.state)) for s in starts]
    return _shown(facts, {s.instruction for s in starts})


def shown_in(episodes: Iterable[Episode]) -> Shown:
    """What demonstrations began with: the settled state before their first action."""
    episodes = list(episodes)
    facts = [
        (e.start_id, e.suite, e.task, e.target, e.instruction, e.states()[0])
        for e in episodes
        if e.start_id is not None and e.suite is not None and e.task is not None and e.target is not None
    ]
    return _shown(facts, {e.instruction for e in episodes})


def _shown(facts: Sequence[tuple[str, str, int, str, str, np.ndarray]], told: set[str]) -> Shown:
    movable: set[str] = set()
    targets: dict[Layout, list[np.ndarray]] = {}
    states: dict[Layout, list[np.ndarray]] = {}
    for _, suite, index, target, _, state in facts:
        if suite == toy.SUITE:
            continue  # the toy's states tell no places
        places, where = positions_in(suite, index, state), (base_of(suite), index)
        movable |= {object_kind(name) for name in places}
        if places:
            states.setdefault(where, []).append(np.stack(list(places.values())))
        if target in places:
            targets.setdefault(where, []).append(places[target])
    return Shown(
        ids=frozenset(same_state(fact[0]) for fact in facts),
        scenes=frozenset(scene for fact in facts if (scene := wide_scene(fact[0]))),
        instructions=frozenset(told),
        kinds=frozenset(movable),
        tasks=frozenset(f"{base_of(suite)}/{index}" for _, suite, index, *_ in facts),
        targets={where: np.stack(found) for where, found in targets.items()},
        states={where: np.stack(found) for where, found in states.items()},
    )


def shared(evaluations: Evaluations, divided: Divided) -> list[Leak]:
    """What training shares with all that is evaluated; `divided` are training and held-out demonstrations."""
    backbone, (training, others) = evaluations.config.backbone, divided
    if evaluations.domain.recorded is not None:
        return [leakage.held_out(training.episodes, others.episodes)]
    trained, home = shown_in(training.episodes), shown_by(evaluations.starts())
    away = [(f"{place.suite}, official", shown_by(evaluations.starts(place))) for place in evaluations.places]
    found = [*leakage.audit(trained, home), leakage.held_out(training.episodes, others.episodes)]
    for where, shown in away:
        found += leakage.audit(trained, shown, where)
    start = StartWeights.of(backbone)
    source = backbone.source if isinstance(backbone, Pretrained) else type(backbone).__name__
    known = (start and start.name, None if isinstance(backbone, SmallPaliGemma) else source)
    acted = None if start is None else start.demonstrations
    found += leakage.pretraining(*known, home, acted)
    for where, shown in away:
        found += leakage.pretraining(*known, shown, acted, where)
    return found


def _about_chains(tasks: Iterable[Task], episodes: Iterable[Episode]) -> Iterator[str]:
    """What target and destination mean where a task has several parts."""
    chains = [str(task.index) for task in tasks if len(set(task.goal) - set(task.init)) > 1]
    if chains:
        several = any(episode.parts for episode in episodes)
        moved = "change with the part that the demonstration is at" if several else "are those of the first thing"
        yield (
            f"Tasks of several parts: {', '.join(chains)}. Success needs all of them, a stage is that of any thing "
            f"that is to be put somewhere, and target and destination of maps, boxes and hiding {moved}."
        )


def _said(evaluations: Evaluations, episodes: Iterable[Episode]) -> dict[str, tuple[str, ...]]:
    """Every instruction of demonstrations and of the study's own starts, by task, in their order."""
    starts = () if evaluations.domain.recorded is not None else evaluations.starts()
    said: dict[str, dict[str, None]] = {}
    for one in (*episodes, *starts):
        if one.task is not None:
            said.setdefault(str(one.task), {})[one.instruction] = None
    return {task: tuple(sorted(texts)) for task, texts in sorted(said.items())}


def study_description(
    evaluations: Evaluations,
    divided: Divided,
    tasks: Sequence[Task],
    arms: Sequence[Condition],
    pairing: tuple[Pairing, ...],
) -> Study:
    """What the study is, and where and when it ran."""
    c, begun = evaluations.config, read_begun(evaluations.folder / layout.STUDY)
    training, held_out = divided
    rows, columns = c.backbone.grid
    return Study(
        preset=c.preset,
        command=begun.command,
        commit=", ".join(begun.commits),
        data_hash=evaluations.demonstrations.hash,
        started=begun.started,
        finished=now(),
        suite=c.suite,
        placement=c.placement,
        tasks={str(task.index): task.instruction for task in tasks},
        said=_said(evaluations, (*training.episodes, *held_out.episodes)),
        versions=begun.versions,
        hardware=begun.hardware,
        settings={
            "demonstrations": len(training.episodes),
            "held-out demonstrations": len(held_out.episodes),
            "patches": f"{rows} x {columns}, {masked_count(0.25, rows * columns)} masked",
            "training": f"{c.train.steps} steps of {c.train.batch_size}",
            "actions in a chunk": c.backbone.chunk,
            "render quality": c.quality,
            "seeds": list(c.seeds),
            **({} if all(a.annotation_free for a in arms) else {"boxes": annotator(c.gaze).label}),
            "config": kinds.to_json(c),
        },
        action_error_unit=UNIT if evaluations.demonstrations.space == LIBERO_ACTIONS else OTHER_UNIT,
        pairing=pairing,
        hypotheses=begun.hypotheses,
        hypotheses_hash=begun.hypotheses_hash,
        limits=(
            *filter(None, [evaluations.domain.limit]),
            *(() if c.judged else (NOT_JUDGED,)),
            *_about_chains(tasks, training.episodes),
            *evaluations.demonstrations.notes,
        ),
        judged=c.judged,
    )
