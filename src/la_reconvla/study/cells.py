"""The cells of a study, one condition with one seed each, and the official starts that it is evaluated on besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from la_reconvla import layout
from la_reconvla.conditions import NO_IMAGE, Condition
from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.data.samples import Samples
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


def samples_of(demonstrations: Demonstrations, config: StudyConfig) -> Samples:
    """Demonstrations as the study's backbone takes them."""
    b = config.backbone
    return Samples(demonstrations, b.image_size, b.chunk, wrist=b.wrist, proprio=b.proprio)


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
    """Where a study is evaluated besides the starts of its placement."""
    at_home = config.also_official or (config.elsewhere_episodes if config.suite in config.elsewhere else 0)
    if at_home:
        yield OfficialStarts(config.suite, config.tasks, at_home, layout.OFFICIAL, True)
    for suite in config.elsewhere:
        if suite != config.suite:
            tasks = tasks_of(suite, ((config.suite, index) for index in config.tasks))
            yield OfficialStarts(suite, tasks, config.elsewhere_episodes, f"{layout.ELSEWHERE}/{suite}", False)
