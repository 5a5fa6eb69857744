"""Names of the files and folders that studies and evaluations leave behind, and the version of what is in them.

What they hold: ``docs/conventions.md``. Names that a single module writes and reads are in that module.
"""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import Any

from la_reconvla.errors import UserError, nearest

SCHEMA = 2  # of results.json, of held_out.json, of each line of episodes.jsonl and of study.json

RUNS = Path("runs")  # where runs are written unless a command is told otherwise
STUDY = "study.json"
RESULTS = "results.json"
REPORT = "report.html"
TABLES = "tables.md"
TIMES = "times.json"
ENERGY = "energy.json"
COMPARISON = "comparison.json"
COMPARISON_PAGE = "comparison.html"

EPISODES = "episodes.jsonl"
SEQUENCES = "sequences.jsonl"
EVALUATION = "evaluation.json"
HELD_OUT = "held_out.json"

DEMONSTRATIONS = "demonstrations"
PLACEMENTS = "placements"
FLOORS = "floors"
REFERENCES = "references"
OFFICIAL = "official"
ELSEWHERE = "elsewhere"
VIDEOS = "videos"
TRACKS = "tracks"  # episodes that can be drawn again
FILMS = "films"  # drawn of them
MAPS = "maps"


def cell(study: Path, condition: str, seed: int) -> Path:
    """Folder of one condition trained with one seed."""
    return study / condition / f"seed{seed}"


def floor(study: Path, view: str, condition: str, seed: int) -> Path:
    """Folder of the episodes of one trained policy under another view."""
    return cell(study / FLOORS / view, condition, seed)


def meant(folder: Path, holding: str) -> str:
    """Which folder was perhaps meant, ready to end a message; empty if there is none.

    Args:
        folder: what was named and is not what it should be.
        holding: pattern of a file that makes a folder the right kind.

    Returns:
        The nearest by name of those beside it, below them, and among the runs.
    """
    beside = folder.parent if folder.parent.is_dir() and folder.parent.resolve() != Path("/") else RUNS
    inside = (base.glob(f"{depth}{holding}") for base in (beside, RUNS) for depth in ("*/", "*/*/"))
    near = nearest(str(folder), {str(path.parent) for path in islice(chain(*inside), 1000)}, likeness=0)
    return f"; the nearest that is there: {near[0]}" if near else ""


def require_schema(value: Any, where: str) -> dict[str, Any]:
    """`value`, if it is an object of this version's `SCHEMA`; `where` names it in messages.

    Raises:
        UserError: it is of another version, or no object.
    """
    found = value.get("schema") if isinstance(value, dict) else None
    if found != SCHEMA:
        raise UserError(
            f"{where}: schema {found!r} is not {SCHEMA}: read it with the version that wrote it, or run it again in "
            "another folder"
        )
    return value
