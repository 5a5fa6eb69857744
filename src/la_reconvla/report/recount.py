"""Whether the counts of `results.json` are those of the episodes on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from la_reconvla import layout
from la_reconvla.analysis.results import Results
from la_reconvla.episodes import read_episodes


def recounted(results: Results, folder: Path) -> tuple[int, list[str]]:
    """Count the episodes of every policy that was rolled out on the study's starts again.

    Args:
        results: what the page shows.
        folder: of the study.

    Returns:
        How many counts were compared (0 where no episodes are there), and a sentence for each that differs. Where more
        episodes are on the disk than the page shows, another command has begun to extend the study: not compared.

    Raises:
        UserError: as `read_episodes`.
    """
    pairs = [(name, shown, found) for name, shown, found in _counts(results, folder) if found[1] <= shown[1]]
    return len(pairs), [
        f"{name}: {shown[0]} of {shown[1]} here, {found[0]} of {found[1]} in {layout.EPISODES}"
        for name, shown, found in pairs
        if shown != found
    ]


def _counts(results: Results, folder: Path) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Name, (successes, episodes) as shown and as recounted."""
    for condition in results.conditions:
        for cell in condition.cells:
            where = layout.cell(folder, condition.id, cell.seed)
            if cell.tsr is not None and (where / layout.EPISODES).is_file():
                shown = cell.tsr.successes, cell.tsr.episodes
                yield f"{condition.id} seed {cell.seed}", shown, _ended(where)
    for reference in results.references:
        where = folder / layout.REFERENCES / reference.id
        if (where / layout.EPISODES).is_file():
            shown = reference.tsr.successes, reference.tsr.episodes
            yield reference.id, shown, _ended(where)


def _ended(folder: Path) -> tuple[int, int]:
    records = read_episodes(folder)
    return sum(record.success for record in records), len(records)
