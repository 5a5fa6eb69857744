"""What a study of any size takes before it runs: hours, disk, files and memory, on one machine and on several.

Hours are those of `la_reconvla.study.forecast`, corrected by what a finished study took on the machine in question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from la_reconvla import kinds
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.robot import LIBERO_ACTIONS
from la_reconvla.study.cells import cells, official_starts
from la_reconvla.study.disk import Disk, disk
from la_reconvla.study.forecast import KINDS, PARTS, TELLING, rollouts, side_by_side, work
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.study.results import results_of
from la_reconvla.study.shareable import size_text
from la_reconvla.study.step_memory import skeleton
from la_reconvla.text_table import TextTable, duration
from la_reconvla.training.checkpoint import SAVED, PolicyConfig, kept
from la_reconvla.training.train_config import TrainConfig

# Of benchmarks/scale.py (docs/scale.md), for each episode.
COUNTED = 0.0016  # seconds of one core: read and counted, of 10,000; more take less each
HELD = 1_600  # bytes of memory: a record, without what the statistics hold beside it
LINE = 650  # bytes of a line of episodes.jsonl
FILES = 12  # of a policy, beside its looks and videos: weights, configuration, curves, records
SITE = 60  # files beside the policies: demonstrations, placements, floors, pages
Rates = Mapping[str, float]
"""Of each part, how many times the seconds of `work` a machine takes with all of its workers."""


@dataclass(frozen=True)
class Outlook:
    """A study before it runs.

    Attributes:
        policies: that are trained.
        rollouts: episodes, floors and references included.
        alone: seconds of each part on one machine.
        together: the same on all machines.
        machines: how many these are.
        disk: bytes, without the lines of episodes.
        files: how many files stay in its folder.
    """

    policies: int
    rollouts: int
    alone: Mapping[str, float]
    together: Mapping[str, float]
    machines: int
    disk: Disk
    files: int

    @property
    def bytes(self) -> float:
        """What stays in its folder."""
        return self.disk.finished + LINE * self.rollouts

    @property
    def memory(self) -> float:
        """Bytes of memory that its statistics take."""
        return HELD * self.rollouts


def measured(study: Path, backbone: object) -> Rates:
    """The rates of the machine that ran this study, for studies with this backbone.

    Parts that took too little to tell take the rate of the same kind of work, or that of the whole.

    Raises:
        UserError: it is no finished study, its times are not known, or it trained another backbone.
    """
    about = results_of(study).study
    try:
        config = kinds.from_json(about.settings.get("config"), (StudyConfig, TrainConfig, *SAVED))
    except (TypeError, ValueError) as error:
        raise UserError(f"{study} was made by another version ({error}): name another study") from error
    if config.backbone != backbone:
        raise UserError(
            f"{study} trained another backbone: how fast it is says nothing of this one; "
            "drop --measured, or name a run of this preset"
        )
    nowhere = study / "nothing is there"
    said = work(config, nowhere, cells(config, nowhere), tuple(official_starts(config)))
    known = {p: about.wall_seconds[p] / said[p] for p in PARTS if p in about.wall_seconds and said[p] >= TELLING}
    if not known:
        raise UserError(f"{study} does not say how long its parts took: name another study")
    alike = {p: [rate for other, rate in known.items() if KINDS[other] == KINDS[p]] or [*known.values()] for p in PARTS}
    return {part: known.get(part, sum(alike[part]) / len(alike[part])) for part in PARTS}


def outlook(config: StudyConfig, machines: int, rates: Rates) -> Outlook:
    """What a study takes on so many equal machines.

    A policy trains, and is measured, on one machine; episodes are divided among all; statistics are one machine's.

    Raises:
        UserError: without a machine.
    """
    if machines < 1:
        raise UserError(f"a study needs at least one machine, not {machines}")
    nowhere = Path("nothing is there")
    of_it, places = cells(config, nowhere), tuple(official_starts(config))
    count = rollouts(config, of_it, places)
    alone = {part: rates[part] * seconds for part, seconds in work(config, nowhere, of_it, places).items()}
    alone[PARTS[-1]] += COUNTED * count
    most = math.ceil(len(of_it) / machines) / len(of_it)  # share of the policies that the fullest machine has
    shares = dict(zip(PARTS, (1 / machines, most, 1 / machines, most, 1.0), strict=True))
    looks, videos = config.train.steps // config.train.check_every + 2, len(config.tasks) + 4
    return Outlook(
        len(of_it),
        count,
        alone,
        {part: shares[part] * seconds for part, seconds in alone.items()},
        machines,
        disk(config, _weights(config)),
        SITE + len(of_it) * (FILES + looks + videos),
    )


def _weights(config: StudyConfig) -> float:
    """Bytes of what one policy saves."""
    arm = config.arm(config.conditions[-1])
    if isinstance(config.backbone, Pretrained):
        trained = (p for p in skeleton(config.backbone, arm, config.decoding).parameters() if p.requires_grad)
        return 4.0 * sum(p.numel() for p in trained)
    bins = ActionBins((-1.0,) * len(LIBERO_ACTIONS), (1.0,) * len(LIBERO_ACTIONS))
    described = {"seed": 0, "quality": config.quality, "image_size": config.backbone.image_size, "data_hash": ""}
    described |= {"backbone": config.backbone, "bins": bins, "train_starts": (), "decoding": config.decoding}
    return float(sum(tensor.nbytes for tensor in kept(PolicyConfig.of(arm, **described).build()).values()))


def asked(name: str, changes: Mapping[str, object], policies: int) -> StudyConfig:
    """A preset with changes, with as many seeds as make at least so many policies; 0 for the preset's seeds.

    Raises:
        UserError: from the preset, or for CALVIN, whose rates are not known.
    """
    config = preset(name).changed(**changes)
    if config.suite == "calvin":
        raise UserError("how fast CALVIN's simulator is was not measured: plan a study of a LIBERO suite")
    if policies:
        config = replace(config, seeds=tuple(range(math.ceil(policies / (len(config.conditions) + 1)))))
    return config


def usual(config: StudyConfig, workers: int) -> Rates:
    """The rates of a machine with so many workers like the core of docs/results/quick.md.

    Raises:
        UserError: for a pretrained backbone, whose rate only a study can tell.
    """
    if isinstance(config.backbone, Pretrained):
        raise UserError(
            f"how fast {config.backbone.source} is on this machine is not known: run a small study with it, and name "
            "that by --measured; `la-reconvla check plan` says what its training takes at best"
        )
    nowhere = Path("nothing is there")
    alone = work(config, nowhere, cells(config, nowhere), tuple(official_starts(config)))
    return {part: side_by_side(part, seconds, workers) / seconds if seconds else 1.0 for part, seconds in alone.items()}


def table(found: Outlook) -> TextTable:
    """Time of each part and of all."""
    alone, together = duration(sum(found.alone.values())), duration(sum(found.together.values()))
    rows = [(part, duration(found.alone[part]), duration(found.together[part])) for part in PARTS]
    rows.append(("all", alone, together))
    title = f"{found.policies} policies, {found.rollouts:,} episodes"
    return TextTable(title, ("", "one machine", f"{found.machines} machines"), rows)


def said(found: Outlook) -> str:
    """Disk, files and memory in sentences."""
    parts = {name: size_text(value) for name, value in vars(found.disk).items()}
    return (
        f"disk: {size_text(found.bytes)} when it is finished ({parts['demonstrations']} of demonstrations, "
        f"{parts['weights']} of weights, {size_text(found.disk.records + LINE * found.rollouts)} of records and "
        f"pictures), in about {found.files:,} files\n"
        f"memory: its statistics take at least {size_text(found.memory)} on one machine"
    )
