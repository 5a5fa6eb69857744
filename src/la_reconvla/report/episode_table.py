"""The episodes of a study, or of a folder of the command ``eval``, as one table for other programs."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path
from typing import Any

from la_reconvla import layout
from la_reconvla.episodes import EpisodeRecord, Reached, StartName, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.storage import atomic_write

STAGES = tuple(field.name for field in fields(Reached))
NAMES = tuple(field.name for field in fields(StartName))
COLUMNS = ("arm", "seed", "floor", *NAMES, "success", "steps", *STAGES, "moved", "touched", "held")
# Folders with episodes, below a study and below what it keeps of other starts (docs/conventions.md). What `eval` wrote
# into a run is deeper.
_CELLS = ("*/seed*", f"{layout.FLOORS}/*", f"{layout.FLOORS}/*/*/seed*", f"{layout.REFERENCES}/*")
_PLACES = (".", layout.OFFICIAL, f"{layout.ELSEWHERE}/*")


def write_episode_table(folder: Path, out: Path) -> Path:
    """Write all episodes in `folder` as a CSV file with a header of `COLUMNS`, one row an episode.

    What is true or false is 1 or 0, what was not recorded is empty. A study's rows come folder by folder, sorted by
    name; those of one folder in the order in which the episodes ended.

    Args:
        folder: of a study, or of an evaluation; with the floors that are in it.
        out: the file, which is replaced.

    Returns:
        `out`.

    Raises:
        UserError: there are no episodes, one cannot be read, or `out` does not end in .csv.
    """
    if out.suffix != ".csv":
        raise UserError(f"{out} does not end in .csv: the episodes are written as such a table")
    records = [record for found in _folders(folder) for record in read_episodes(found)]
    if not records:
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{layout.EPISODES}"))
        raise UserError(
            f"{folder} holds no episodes: name the folder of a study or of an evaluation"
            + (f", for example {inside[0]}" if inside else "")
        )
    with atomic_write(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(map(_row, records))
    return out


def _folders(folder: Path) -> list[Path]:
    if (folder / layout.STUDY).exists():
        return [path for place in _PLACES for cell in _CELLS for path in sorted(folder.glob(f"{place}/{cell}"))]
    return [folder, *sorted(folder.glob(f"{layout.FLOORS}/*"))]


def _row(record: EpisodeRecord) -> list[Any]:
    label, start, reached = record.label, record.start, record.reached
    values = (
        *(label.condition, label.seed, label.floor),
        *(getattr(start, name) for name in NAMES),
        *(record.success, record.steps),
        *(getattr(reached, name) for name in STAGES),
        *(record.first_thing(way) for way in ("moved", "touched", "held")),
    )
    return [int(value) if isinstance(value, bool) else value for value in values]
