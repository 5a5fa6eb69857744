"""A study divided among processes that share nothing but a disk, or not even that: who does what.

The pieces are whole: a policy is trained, rolled out and measured by one process, which holds its folder meanwhile
(`la_reconvla.leases`). A process does its own share first and then what is left of the others'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from la_reconvla import leases
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.storage import locked
from la_reconvla.study.cells import Cell
from la_reconvla.study.evaluate import Evaluation, pending
from la_reconvla.study.evaluations import Evaluations
from la_reconvla.study.records import OF_POLICY
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
        folders = (each.folder for _, evaluations, _ in self.rollouts for each in evaluations)
        return [folder for folder in folders if folder != self.folder]


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


def claimed(study: Path, order: Sequence[Piece], unfinished: Callable[[Piece], bool]) -> Generator[Piece]:
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
        if any(map(OF_POLICY.fullmatch, folder.relative_to(study).parts[:-1])):
            continue  # what `eval` writes into a run is no part
        if (owner := leases.holder(folder)) is not None:
            raise UserError(f"{folder}: {owner} is working on this part of the study; wait for it or end it")
