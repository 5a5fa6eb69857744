"""The record of one closed-loop episode or sequence, and the file that holds them, one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from la_reconvla import layout
from la_reconvla.data.starts import COUNTERFACTUAL, PlacementKind, Split, Start
from la_reconvla.storage import append_jsonl, read_jsonl
from la_reconvla.typed_json import parse

View = Literal["true", "grey_image", "wrong_instruction"]
WAYS = ("touched", "held", "moved")
"""In which a hand can come to a thing; `EpisodeRecord.value` tells of each whether the first thing was asked for."""


@dataclass(frozen=True)
class Label:
    """Which policy acted.

    Attributes:
        condition: arm, ``expert`` or ``random``; None for a floor that is no arm's.
        seed: training seed; None for what was not trained.
        floor: the floor that it is; None for a policy as trained.
    """

    condition: str | None
    seed: int | None
    floor: str | None = None

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.condition, self.floor) if part)


@dataclass(frozen=True)
class StartName:
    """Which start it was, without the state itself; fields as in `la_reconvla.data.starts.Start`."""

    suite: str
    task: int
    placement: PlacementKind
    split: Split
    index: int
    instruction: str
    target: str

    @classmethod
    def of(cls, start: Start) -> StartName:
        """The name of `start`."""
        return cls(start.suite, start.task, start.placement, start.split, start.index, start.instruction, start.target)

    @cached_property
    def id(self) -> str:
        """As `la_reconvla.data.starts.Start.id`."""
        return f"{self.suite}/{self.task}/{self.placement}/{self.split}/{self.index}"

    @property
    def file_name(self) -> str:
        """Its name among the files of one policy."""
        return "_".join([self.suite, f"task{self.task}", self.placement, self.split, str(self.index)])

    @property
    def pair(self) -> tuple[str, int]:
        """The initial state, and which of the two things is asked for there: 0 or 1."""
        suite = self.suite.removesuffix(COUNTERFACTUAL)
        scene, which = divmod(self.index, 2) if self.placement == "wide" else (self.index, int(suite != self.suite))
        return f"{suite}/{self.task}/{self.placement}/{self.split}/{scene}", which


@dataclass(frozen=True)
class Reached:
    """The stages of one episode (`la_reconvla.sim.rollout`) and the smallest distance (m) of gripper and target.

    All are None where the goal puts nothing anywhere.
    """

    approached: bool | None = None
    distractor_approached: bool | None = None
    grasped: bool | None = None
    lifted: bool | None = None
    placed: bool | None = None
    smallest_distance: float | None = None


@dataclass(frozen=True)
class First:
    """What the hand did first, whatever was asked for; a thing is an object or a piece of furniture, by its instance.

    Attributes:
        asked: the things that the goal wants moved, opened, closed or switched, or that must be for it (a closed drawer
            that something belongs in); several where it has several parts.
        touched: the first thing that the hand touched, None if it touched nothing.
        held: the first thing that both fingers touched at once, None if there was none.
    """

    asked: tuple[str, ...]
    touched: str | None = None
    held: str | None = None


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode.

    Attributes:
        label: which policy acted.
        start: where it began.
        success: by the simulator's predicate.
        steps: control steps taken.
        seconds: wall time.
        reached: how far it got.
        moved: the first thing that was moved, None if nothing was; in records of before furniture
            was watched an object.
        video: path of a film, relative to the file of the record; only in records of before `track`.
        track: path of what draws the episode again (`la_reconvla.sim.track`), None if it was not kept.
        first: what the hand touched and held first, None in records of before it was watched.
    """

    label: Label
    start: StartName
    success: bool
    steps: int
    seconds: float
    reached: Reached = Reached()
    moved: str | None = None
    video: str | None = None
    track: str | None = None
    first: First | None = None

    @cached_property
    def unit(self) -> tuple[int | None, str, str]:
        """Training seed, task and start."""
        return self.label.seed, str(self.start.task), self.start.id

    @cached_property
    def unit_text(self) -> str:
        """What episodes are sorted by."""
        return str(self.unit)

    @property
    def outcome(self) -> str:
        """How it ended, in a word."""
        return "success" if self.success else "failure"

    @property
    def asked(self) -> frozenset[str]:
        """The things that were asked for."""
        return frozenset(self.first.asked) if self.first and self.first.asked else frozenset({self.start.target})

    def first_thing(self, way: str) -> str | None:
        """The first thing that was ``touched``, ``held`` or ``moved``; None if there was none, or it is not known."""
        return self.moved if way == "moved" else getattr(self.first, way, None)

    def value(self, metric: str) -> float | None:
        """``tsr`` (success), a stage or ``smallest_distance``; None if it was not recorded.

        Of ``touched``, ``held`` and ``moved`` it is whether the first such thing was asked for; None too if there was
        none.
        """
        if metric in WAYS:
            thing = self.first_thing(metric)
            found = None if thing is None else thing in self.asked
        else:
            found = self.success if metric == "tsr" else getattr(self.reached, metric)
        return None if found is None else float(found)

    def to_json(self) -> dict[str, Any]:
        """One line of ``episodes.jsonl``."""
        return {"schema": layout.SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> EpisodeRecord:
        """What `to_json` gave; `where` names it in messages.

        Raises:
            UserError: it is of another version, or a field is missing or of another type.
        """
        return parse(cls, layout.require_schema(value, where), where)


@dataclass(frozen=True)
class SequenceRecord:
    """One of CALVIN's sequences: subtasks in a row, until one fails.

    Attributes:
        label: which policy acted.
        index: its place in the published list.
        state: number of its initial state.
        subtasks: what was asked for, in order.
        completed: how many of them were done before the first that was not.
        steps: control steps of each that was begun.
        seconds: wall time.
    """

    label: Label
    index: int
    state: int
    subtasks: tuple[str, ...]
    completed: int
    steps: tuple[int, ...]
    seconds: float


def read_sequences(folder: Path) -> list[SequenceRecord]:
    """Records of all finished sequences in `folder`, in the order in which they ended.

    Raises:
        UserError: as `EpisodeRecord.from_json`, or a line is not JSON.
    """
    path = folder / layout.SEQUENCES
    lines = ((value, f"{path}, line {i}") for i, value in enumerate(read_jsonl(path), start=1))
    return [parse(SequenceRecord, layout.require_schema(value, where), where) for value, where in lines]


def append_sequences(folder: Path, records: Iterable[SequenceRecord]) -> None:
    """Add records; when this returns they are on the disk."""
    append_jsonl(folder / layout.SEQUENCES, *({"schema": layout.SCHEMA, **asdict(record)} for record in records))


def read_episodes(folder: Path) -> list[EpisodeRecord]:
    """Records of all finished episodes in `folder`, in the order in which they ended.

    Raises:
        UserError: as `EpisodeRecord.from_json`, or a line is not JSON.
    """
    path = folder / layout.EPISODES
    return [EpisodeRecord.from_json(value, f"{path}, line {i}") for i, value in enumerate(read_jsonl(path), start=1)]


def append_episodes(folder: Path, records: Iterable[EpisodeRecord]) -> None:
    """Add records; when this returns they are on the disk."""
    append_jsonl(folder / layout.EPISODES, *(record.to_json() for record in records))
