"""Which starts are worth watching: a pure function of the episodes' records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from la_reconvla.analysis.measures import STAGES
from la_reconvla.episodes import EpisodeRecord

Reason = Literal["the arms disagree", "every arm succeeds", "nearest miss", "first of its task"]
MISSES = 3  # starts on which all fail, the nearest to a success


@dataclass(frozen=True)
class Chosen:
    """A start to watch, and why."""

    start: str
    reason: Reason


def choose(episodes: Mapping[str, Sequence[EpisodeRecord]]) -> list[Chosen]:
    """Starts to watch, the most telling first; every start on which any arm succeeds is among them.

    First those on which arms disagree, the most evenly divided of them first; then those on which all succeed; then
    the nearest misses, `MISSES` at most: of the starts on which all fail, by the furthest stage that an arm reached and
    there by the smallest distance of hand and target. Last the first start of each task, as far as it is not among
    them. Ties are in the order of the first arm's records.

    Args:
        episodes: of each arm. Starts that not all arms have done count by the arms that have.
    """
    by_start: dict[str, list[EpisodeRecord]] = {}
    for records in episodes.values():
        for record in records:
            by_start.setdefault(record.start.id, []).append(record)
    rates = {start: sum(r.success for r in found) / len(found) for start, found in by_start.items()}
    divided = sorted((s for s, rate in rates.items() if 0 < rate < 1), key=lambda s: abs(rates[s] - 0.5))
    solved = [s for s, rate in rates.items() if rate == 1]
    failed = [s for s, rate in rates.items() if rate == 0 and _tells(by_start[s])]
    near = sorted(failed, key=lambda s: max(map(_progress, by_start[s])), reverse=True)
    first: dict[int, str] = {}
    for start, found in by_start.items():
        task, index = found[0].start.task, found[0].start.index
        if task not in first or index < by_start[first[task]][0].start.index:
            first[task] = start
    reasons: tuple[tuple[Reason, Sequence[str]], ...] = (
        ("the arms disagree", divided),
        ("every arm succeeds", solved),
        ("nearest miss", near[:MISSES]),
        ("first of its task", list(first.values())),
    )
    chosen: dict[str, Chosen] = {}
    for reason, starts in reasons:
        for start in starts:
            chosen.setdefault(start, Chosen(start, reason))
    return list(chosen.values())


def _tells(records: Sequence[EpisodeRecord]) -> bool:
    """Whether it is known how near any of them came."""
    return any(record.reached.smallest_distance is not None for record in records)


def _progress(record: EpisodeRecord) -> tuple[int, float]:
    """How near a failure came: its furthest stage, then minus the smallest distance."""
    ways = [stage for stage in STAGES if stage != "distractor_approached"]  # a hand at the wrong thing is no nearer
    reached = [number for number, stage in enumerate(ways, start=1) if getattr(record.reached, stage, None)]
    distance = record.reached.smallest_distance
    return max(reached, default=0), -(float("inf") if distance is None else distance)
