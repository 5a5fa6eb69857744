"""Where a study takes place: LIBERO, the toy whose answer is known, nowhere but in one's own demonstrations, or CALVIN.

A domain is a value, found by the suite that was asked for and, where a study does not collect, the demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from la_reconvla.analysis.declaration import DECLARED, Declaration
from la_reconvla.analysis.sequences import SequenceResults
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_layout import DEMO_SUFFIX
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.sim import toy
from la_reconvla.sim.calvin import environment_of
from la_reconvla.sim.calvin_sequences import require_count
from la_reconvla.sim.collect import collect
from la_reconvla.sim.collection_config import CollectConfig
from la_reconvla.sim.machine import require_simulator
from la_reconvla.sim.policies import Scripted, Specification
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.sim.tasks import Task, load_task
from la_reconvla.study import calvin
from la_reconvla.study.cells import RECORDED, Cell
from la_reconvla.study.evaluate import settings_for
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.starts import evaluation_starts, was_trained_on, wording


class Domain(Protocol):
    """What a study asks of the place where it happens. Implementations are frozen dataclasses."""

    @property
    def expert(self) -> Specification:
        """A policy that knows the answer."""
        ...

    @property
    def recorded(self) -> Path | None:
        """Demonstrations that are there already, with no simulator behind them; None where they are collected."""
        ...

    @property
    def films(self) -> bool:
        """Whether episodes are worth a video."""
        ...

    @property
    def limit(self) -> str:
        """What its studies do not show, a sentence or two; empty where there is nothing to add."""
        ...

    @property
    def declared(self) -> Declaration:
        """What a study there judges by default."""
        ...

    def require(self, config: StudyConfig) -> None:
        """Raise a `UserError` if this machine lacks something that the study needs."""
        ...

    def tasks(self, config: StudyConfig) -> list[Task]:
        """The study's tasks; raises a `UserError` for unknown ones."""
        ...

    def wording(self, config: StudyConfig) -> set[tuple[int, str]]:
        """(task, instruction) of all starts; none is made for it."""
        ...

    def collect(self, config: StudyConfig, out: Path, workers: int) -> None:
        """Write the demonstrations, resume, or do nothing if they exist."""
        ...

    def starts(self, config: StudyConfig, episodes: int, trained_on: frozenset[str], cache: Path) -> list[Start]:
        """`episodes` test starts of each task, none of which is in `trained_on`; see `evaluation_starts`."""
        ...

    def settings(self, config: StudyConfig) -> EnvSettings:
        """The environment that shows what the study's backbone takes."""
        ...

    def sequences(
        self, config: StudyConfig, folder: Path, cells: Sequence[Cell], workers: int, device: str
    ) -> SequenceResults | None:
        """Judge policies by a protocol that has no `starts`, beside these; None where there is none."""
        ...


class _WithoutSequences:
    """What most domains say of the last parts of `Domain`."""

    limit = ""

    def sequences(
        self, config: StudyConfig, folder: Path, cells: Sequence[Cell], workers: int, device: str
    ) -> SequenceResults | None:
        """There are none."""


@dataclass(frozen=True)
class Libero(_WithoutSequences):
    """LIBERO's simulator and the scripted expert."""

    films, recorded = True, None

    @property
    def expert(self) -> Specification:
        """See `la_reconvla.sim.expert`."""
        return Scripted()

    @property
    def declared(self) -> Declaration:
        """The package's own."""
        return DECLARED

    def require(self, config: StudyConfig) -> None:
        """It can be imported, and draws."""
        require_simulator()

    def tasks(self, config: StudyConfig) -> list[Task]:
        """From BDDL files."""
        _collecting(config, Path(), workers=1)  # refuses what could not be recorded, before anything is written
        return [load_task(config.suite, index) for index in config.tasks]

    def wording(self, config: StudyConfig) -> set[tuple[int, str]]:
        """See `la_reconvla.study.starts.wording`."""
        return wording(config.suite, config.tasks, config.placement)

    def collect(self, config: StudyConfig, out: Path, workers: int) -> None:
        """See `la_reconvla.sim.collect`."""
        collect(_collecting(config, out, workers))

    def starts(self, config: StudyConfig, episodes: int, trained_on: frozenset[str], cache: Path) -> list[Start]:
        """Official ones or ours."""
        c = config
        return evaluation_starts(c.suite, c.tasks, c.placement, episodes, trained_on=trained_on, cache=cache)

    def settings(self, config: StudyConfig) -> EnvSettings:
        """Rendered as the demonstrations were."""
        return settings_for(config.backbone, config.backbone.image_size, config.quality)


def _collecting(config: StudyConfig, out: Path, workers: int) -> CollectConfig:
    return CollectConfig(
        suite=config.suite,
        tasks=config.tasks,
        demos=config.demos,
        out=out,
        placement=config.placement,
        quality=config.quality,
        image_size=config.backbone.image_size,
        frame_stride=config.frame_stride,
        mistakes=config.mistakes,
        wrist=config.backbone.wrist,
        workers=workers,
    )


@dataclass(frozen=True)
class Toy(_WithoutSequences):
    """The toy task, see `la_reconvla.sim.toy`.

    Attributes:
        boards: of a demonstration; an evaluation episode has one.
        errors: share of demonstrated pushes that go anywhere.
    """

    boards: int = 16
    errors: float = 0.7
    films, recorded = False, None

    @property
    def expert(self) -> Specification:
        """Never errs."""
        return toy.ToyScripted()

    @property
    def declared(self) -> Declaration:
        """The claims whose verdicts are known."""
        return Declaration.read(Path(__file__).with_name("known_answer.json"))

    def require(self, config: StudyConfig) -> None:
        """Needs nothing."""

    def tasks(self, config: StudyConfig) -> list[Task]:
        """There is one."""
        if config.tasks != (toy.TASK.index,) or config.placement != "wide" or config.also_official or config.elsewhere:
            raise UserError("the toy has task 0 and wide placements only: leave --tasks and --elsewhere out")
        if config.backbone.image_size != toy.SIZE:
            raise UserError(f"a board of the toy has {toy.SIZE} pixels: give a backbone with this image size")
        return [toy.TASK]

    def wording(self, config: StudyConfig) -> set[tuple[int, str]]:
        """One instruction a colour."""
        return {(toy.TASK.index, f"push {colour}") for colour in toy.COLOURS}

    def collect(self, config: StudyConfig, out: Path, workers: int) -> None:
        """Drawn in seconds, and in one piece."""
        if not (out / f"{toy.NAME}{DEMO_SUFFIX}").exists():
            out.mkdir(parents=True, exist_ok=True)
            toy.demonstrations(out, config.demos, self.boards, self.errors)

    def starts(self, config: StudyConfig, episodes: int, trained_on: frozenset[str], cache: Path) -> list[Start]:
        """One board each."""
        starts: Sequence[Start] = [toy.start("test", index) for index in range(episodes)]
        return [start for start in starts if not was_trained_on(start, trained_on)]

    def settings(self, config: StudyConfig) -> EnvSettings:
        """A board is a board."""
        return toy.ToySettings()


@dataclass(frozen=True)
class Recorded(_WithoutSequences):
    """One's own demonstrations: policies are judged on held-out frames of them, as nothing can be rolled out.

    Attributes:
        recorded: folder of ``*_demo.hdf5`` files.
    """

    recorded: Path
    films, name, takes = False, "offline", frozenset[str]()
    limit = (
        "There is no simulator in this study and nothing was rolled out: policies are judged on held-out frames of the "
        "demonstrations. A lower action error does not say that a robot succeeds more often."
    )

    @property
    def expert(self) -> Specification:
        """There is none; nothing is rolled out."""
        return Scripted()

    @property
    def declared(self) -> Declaration:
        """What action errors can say."""
        return Declaration.read(Path(__file__).with_name("offline.json"))

    def require(self, config: StudyConfig) -> None:
        """Needs nothing."""

    def tasks(self, config: StudyConfig) -> list[Task]:
        """One for each instruction."""
        told = dict.fromkeys(e.instruction for e in open_demonstrations(self.recorded).episodes)
        return [replace(toy.TASK, suite=RECORDED, index=n, instruction=text) for n, text in enumerate(told)]

    def wording(self, config: StudyConfig) -> set[tuple[int, str]]:
        """What was demonstrated; all of one task, as episodes do not say more."""
        return {(0, task.instruction) for task in self.tasks(config)}

    def collect(self, config: StudyConfig, out: Path, workers: int) -> None:
        """They are there."""

    def starts(self, config: StudyConfig, episodes: int, trained_on: frozenset[str], cache: Path) -> list[Start]:
        """There are none."""
        return []

    def settings(self, config: StudyConfig) -> EnvSettings:
        """There is no environment."""
        raise AssertionError("nothing is rolled out")


@dataclass(frozen=True)
class Calvin(Recorded):
    """A dataset of CALVIN: what `Recorded` does, and then its protocol; the study's `episodes` are sequences."""

    name, takes = calvin.SUITE, frozenset({"suite", "episodes"})
    limit = (
        "Policies were rolled out by CALVIN's protocol only: there are no single tasks, stages or floors by success. "
        "Of their average lengths, those of two arms are corrected for their number. No hypothesis rests on them."
    )

    def require(self, config: StudyConfig) -> None:
        """So many sequences exist, and the simulator is installed."""
        require_count(config.episodes)
        environment_of(self.recorded)

    def sequences(
        self, config: StudyConfig, folder: Path, cells: Sequence[Cell], workers: int, device: str
    ) -> SequenceResults:
        """See `la_reconvla.study.calvin.close_the_loop`."""
        return calvin.close_the_loop(folder, cells, self.recorded, config.episodes, workers, device)


LIBERO = Libero()
DOMAINS: dict[str, Domain] = {toy.SUITE: Toy()}
ON_RECORDED: dict[str, type[Recorded]] = {calvin.SUITE: Calvin}
"""Simulators whose studies train on a dataset that is there, by the suite that asks for them."""


def domain(suite: str) -> Domain:
    """Where a suite happens: LIBERO, which knows its suites' names, unless it is the toy."""
    return DOMAINS.get(suite, LIBERO)
