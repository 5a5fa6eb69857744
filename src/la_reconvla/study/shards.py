"""A study divided among processes that share nothing but a disk, or not even that: who does what, and merging it.

The pieces are whole: a policy is trained, rolled out and measured by one process, which holds its folder meanwhile
(`la_reconvla.leases`). A process does its own share first and then what is left of the others'.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from la_reconvla import layout, leases
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.storage import locked
from la_reconvla.study.begun import read_begun
from la_reconvla.study.cells import RECORDED, Cell
from la_reconvla.study.evaluate import Evaluation, pending
from la_reconvla.study.evaluations import Evaluations
from la_reconvla.study.identity import config_of
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.records import restore
from la_reconvla.training.trained_policy import Trained


@dataclass(frozen=True)
class Share:
    """Which pieces a process does.

    Attributes:
        number: of the process, from 0.
        count: of all of them.
        separate: do these and no others, since the processes share no folder.
    """

    number: int
    count: int
    separate: bool = False

    @classmethod
    def of(cls, text: str, separate: bool = False) -> Share:
        """From ``i/n``.

        Raises:
            UserError: it is nothing like that.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise UserError(f"--shard is a number from 0 and how many there are, such as 0/8 or 7/8, not {text}")
        return cls(int(found[1]), int(found[2]), separate)

    def order(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The own pieces, then from their end those of the others, who begin at the front."""
        own = list(pieces[self.number :: self.count])
        return own if self.separate else [*own, *(piece for piece in reversed(pieces) if piece not in own)]


@dataclass(frozen=True, eq=False)
class Piece:
    """What one process does at a time: a policy with its floors, or a floor or reference that no policy is trained for.

    Attributes:
        folder: of the study, held meanwhile.
        cell: the policy; None if there is none to train.
        rollouts: what to call them, the evaluations, and their starts.
    """

    folder: Path
    cell: Cell | None
    rollouts: list[tuple[str, list[Evaluation], list[Start]]]

    @property
    def pending(self) -> int:
        """How many of its episodes are not on disk."""
        return sum(pending(evaluations, starts) for _, evaluations, starts in self.rollouts)

    @property
    def below(self) -> list[Path]:
        """Folders beside its own that it writes to."""
        return [
            each.folder for _, evaluations, _ in self.rollouts for each in evaluations if each.folder != self.folder
        ]


def pieces_of(evaluations: Evaluations) -> list[Piece]:
    """All of a study. What needs no policy comes last: the long ones first."""
    of_cell = {cell.folder: cell for cell in evaluations.cells}
    found = {folder: Piece(folder, cell, []) for folder, cell in of_cell.items()}
    places = [evaluations.folder, *(evaluations.folder / place.folder for place in evaluations.places)]
    runs = evaluations.runs() if evaluations.domain.recorded is None else ()
    for (name, group, starts), place in zip(runs, places, strict=False):
        sorted_out: dict[Path, list[Evaluation]] = {}
        for each in group:
            acting = each.policy.run if isinstance(each.policy, Trained) else None
            home = acting or evaluations.folder / each.folder.relative_to(place)
            sorted_out.setdefault(home, []).append(each)
        for home, own in sorted_out.items():
            found.setdefault(home, Piece(home, of_cell.get(home), [])).rollouts.append((name, own, starts))
    return list(found.values())


def claimed(study: Path, order: Sequence[Piece], unfinished: Callable[[Piece], bool]) -> Iterator[Piece]:
    """The pieces that this process has to do, one by one; each is held until the next is asked for.

    It ends when nothing is left but what others are doing. Those who died are found out (`la_reconvla.leases`).

    Args:
        study: its folder; while another process runs the study as a whole, this one waits.
        order: in which they are looked at.
        unfinished: whether there is something to do.
    """
    found = True
    while found:
        found = False
        for piece in filter(unfinished, order):
            alone = True
            try:
                with locked(piece.folder) as taken:
                    taken.below.extend(piece.below)
                    alone = leases.holder(study) is None
                    if alone and unfinished(piece):  # it may just have been finished
                        found = True
                        yield piece
            except leases.Held:
                continue
            if not alone:
                found = True
                with locked(study, wait=True):
                    pass


def require_idle(study: Path) -> None:
    """Raise a `UserError` if a process works on a part of a study."""
    for folder in {path.parent for path in study.rglob(f"{leases.PREFIX}*")} - {study}:
        if (owner := leases.holder(folder)) is not None:
            raise UserError(f"{folder}: {owner} is working on this part of the study; wait for it or end it")


def merge(out: Path, sources: Sequence[Path]) -> tuple[StudyConfig, list[str]]:
    """Put shards, or records (`la_reconvla.study.records`), into one folder, with the demonstrations of the first.

    Args:
        out: the folder; without `sources` it is one that the shards shared.
        sources: folders of the shards or of records.

    Returns:
        The study that `out` now holds, and what came from where, in lines.

    Raises:
        UserError: they are no parts of one study, one is being worked on, or two records of one policy differ.
    """
    for source in sources:
        if source.resolve() == out.resolve():
            raise UserError(f"{out} is where the others go: name the folders of the shards after it")
        require_idle(source)
    if not sources:
        read_begun(out / layout.STUDY)
    with locked(out):
        lines = restore(sources, out)
        for source in sources:
            for name in (layout.DEMONSTRATIONS, layout.PLACEMENTS):
                if (source / name).is_dir() and not (out / name).exists():
                    _copy(source / name, out / name)
    config = config_of(read_begun(out / layout.STUDY))
    if config.suite == RECORDED:
        raise UserError(
            f"{out} has no simulator behind it, and study.json does not say where its demonstrations are: judge it by "
            f"the study run --offline of before, with --out {out}"
        )
    return config, lines


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(leases.temporary(target.name))
    shutil.copytree(source, part, ignore=shutil.ignore_patterns(f"{leases.PREFIX}*", ".tmp*", ".pictures"))
    part.replace(target)
