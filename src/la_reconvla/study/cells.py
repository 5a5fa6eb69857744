"""The cells of a study, one condition with one seed each, and the official starts that it is evaluated on besides."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from la_reconvla import layout
from la_reconvla.conditions import NO_IMAGE, Condition
from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import Inputs
from la_reconvla.study.floors import VIEWS
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.starts import tasks_of


@dataclass(frozen=True)
class Cell:
    """One condition with one seed and the folder that it lives in."""

    condition: Condition
    seed: int
    folder: Path


def cells(config: StudyConfig, study: Path) -> list[Cell]:
    """All cells of a study in its folder, for each seed the arms and then the policy without image."""
    arms = (*map(config.arm, config.conditions), NO_IMAGE)
    return [Cell(arm, seed, layout.cell(study, arm.id, seed)) for seed in config.seeds for arm in arms]


def samples_of(demonstrations: Demonstrations, config: StudyConfig, inputs: Inputs | None = None) -> Samples:
    """Demonstrations as the study's backbone takes them.

    Args:
        demonstrations: of the robot that `fitted` was given.
        config: the study.
        inputs: those of the training samples, where these are others.
    """
    b = config.backbone
    own = Inputs((config.cameras or demonstrations.cameras)[:2], demonstrations.orientation, config.fit)
    return Samples(demonstrations, b.image_size, b.chunk, wrist=b.wrist, proprio=b.proprio, inputs=inputs or own)


def fitted(config: StudyConfig, demonstrations: Demonstrations) -> StudyConfig:
    """The study as the robot of these demonstrations needs it: width of its state, one camera or two.

    Raises:
        UserError: if cameras or state that were asked for are not there.
    """
    own, width = config.backbone, demonstrations.state_width
    if len(config.cameras) > 2:
        raise UserError("a policy takes a main camera and one beside it: name two with --cameras")
    for name in config.cameras:
        if name not in demonstrations.cameras:
            raise unknown("camera in these demonstrations", name, demonstrations.cameras)
    if width is not None and own.proprio == "gripper":
        raise UserError("only LIBERO's state says how wide the gripper is: take --proprio all or none")
    changes: dict[str, Any] = {"proprio": width} if width is not None and own.proprio == "all" else {}
    changes |= {"wrist": len(config.cameras) == 2} if config.cameras else {}  # as many as are named
    return replace(config, backbone=replace(own, **changes)) if changes else config  # pyright: ignore


@dataclass(frozen=True)
class OfficialStarts:
    """Official starts of one suite, beside the starts of the study itself.

    Attributes:
        suite: LIBERO suite.
        tasks: indices of its tasks.
        episodes: of each task and policy.
        folder: where their records go, below the study's folder.
        home: whether it is the suite that was trained on.
    """

    suite: str
    tasks: tuple[int, ...]
    episodes: int
    folder: str
    home: bool


def official_starts(config: StudyConfig) -> Iterator[OfficialStarts]:
    """Where a study is evaluated besides the starts of its placement, which are left out if they are official."""
    named = config.elsewhere_episodes if config.suite in config.elsewhere else 0
    if (at_home := max(config.also_official, named)) and config.placement == "wide":
        yield OfficialStarts(config.suite, config.tasks, at_home, layout.OFFICIAL, True)
    for suite in config.elsewhere:
        if suite != config.suite:
            tasks = tasks_of(suite, ((config.suite, index) for index in config.tasks))
            yield OfficialStarts(suite, tasks, config.elsewhere_episodes, f"{layout.ELSEWHERE}/{suite}", False)


ROLLED_OUT = ("suite", "tasks", "placement", "demos", "episodes", "also_official", "elsewhere", "elsewhere_episodes")


def asked_of(config: StudyConfig, study: Path, cell: Cell) -> dict[Path, int]:
    """How many episodes a study asks of one policy, by folder, its floors included; nothing on recorded demonstrations.

    Args:
        config: the study.
        study: its folder.
        cell: the policy.
    """
    if config.suite == RECORDED:
        return {}
    few = config.floor_episodes * len(config.tasks)
    home = {cell.folder: few if cell.condition is NO_IMAGE else config.episodes * len(config.tasks)}
    if cell.condition.id == config.floor_arm:
        home |= {layout.floor(study, view, cell.condition.id, cell.seed): few for view in VIEWS}
    below = [folder.relative_to(study) for folder in home]
    away = {study / p.folder / name: p.episodes * len(p.tasks) for p in official_starts(config) for name in below}
    return home | away


RECORDED = "recorded"  # the suite of studies on demonstrations that were there before


def offline(
    config: StudyConfig, changes: Mapping[str, Any], demonstrations: Demonstrations, takes: Collection[str] = ()
) -> StudyConfig:
    """The study on recorded demonstrations, as `fitted`, with nothing to roll out but what `takes` names.

    Raises:
        UserError: as `fitted`, or if `changes` are about rollouts or nothing is held out.
    """
    if given := [name for name in ROLLED_OUT if changes.get(name) is not None and name not in takes]:
        raise UserError(f"{', '.join(given)}: an offline study rolls nothing out, leave that out")
    demonstrations.divide(config.held_out)  # something is held out
    say_changes(config, demonstrations)
    nothing: dict[str, Any] = {"also_official": 0, "elsewhere": (), "floor_episodes": 1}
    nothing |= {} if "episodes" in takes else {"episodes": 1}
    recorded: dict[str, Any] = {"suite": RECORDED, "tasks": (0,), "placement": "official"}
    made = {"quality": demonstrations.quality, "frame_stride": demonstrations.frame_stride}
    return fitted(replace(config, **nothing, **recorded, **made, demos=len(demonstrations.episodes)), demonstrations)


def say_changes(config: StudyConfig, demonstrations: Demonstrations) -> None:
    """On standard error, what reading changed, and whether pictures are smaller than the policy's (are enlarged)."""
    console = Console(stderr=True)
    for note in demonstrations.notes:
        console.print(note, soft_wrap=True, markup=False)
    cameras = (config.cameras or demonstrations.cameras)[: 1 + config.backbone.wrist]
    small = {name: min(demonstrations.episodes[0].picture_size(name)) for name in cameras}
    small = {name: side for name, side in small.items() if side < config.backbone.image_size}
    if small:
        listed = ", ".join(f"{name} has {side}" for name, side in small.items())
        console.print(
            f"the policy's pictures have {config.backbone.image_size} pixels a side, {listed}: they are made larger, "
            "and show no more than before",
            soft_wrap=True,
        )
