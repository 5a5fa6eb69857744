"""The first screens of the page: episodes as dots, claims with their intervals, two arms on one start."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup, escape

from la_reconvla import layout
from la_reconvla.analysis.comparisons import Comparison, Hypothesis
from la_reconvla.analysis.declaration import CHECKS, OVER
from la_reconvla.analysis.results import Arm, CellResult, ConditionResult, Results
from la_reconvla.analysis.verdicts import checked
from la_reconvla.episodes import EpisodeRecord, read_episodes
from la_reconvla.report.phrases import NAMES, direction, led_by, plain, spelled
from la_reconvla.report.player import Film, Playlist, Scene

OUTCOMES = ("success", "grasped", "reached", "nothing")
"""How far an episode came; the best of them counts."""
SHORT = {
    "H1": "as many successes as ReconVLA’s arm",
    "H2": "speed",
    "H3": "where attention rests",
    "H4": "other suites",
    "image": "use of the image",
    "words": "use of the words",
}


def marked(text: str, arms: Iterable[Arm]) -> Markup:
    """`text` for a page: arms by their plain names, the code a tooltip that the keyboard reaches too."""

    def tooltip(arm: Arm) -> str:
        return f'<abbr tabindex="0" title="{escape(arm.id)}: {escape(arm.name)}">{escape(plain(arm))}</abbr>'

    return Markup(spelled(str(escape(text)), arms, tooltip))


# ---------------------------------------------------------------- episodes


@dataclass(frozen=True)
class Dots:
    """Episodes of an arm. `outcomes` are in the order of seeds and starts or, where not `by_start`, of the outcomes."""

    arm: ConditionResult
    outcomes: Sequence[str]
    by_start: bool

    @property
    def counts(self) -> dict[str, int]:
        """Episodes by outcome."""
        return {kind: self.outcomes.count(kind) for kind in OUTCOMES}


def dots(results: Results, folder: Path) -> list[Dots]:
    """The episodes of each arm that was rolled out; equal places are equal starts where the records are on disk."""
    rows = []
    for arm in results.conditions:
        if arm.tsr is None:
            continue
        order = [r for cell in arm.cells for r in _shown(cell, layout.cell(folder, arm.id, cell.seed))]
        complete = len(order) == arm.tsr.episodes
        rows.append(Dots(arm, [_outcome(r) for r in order] if complete else _counted(arm), complete))
    return rows


def _shown(cell: CellResult, folder: Path) -> list[EpisodeRecord]:
    """The episodes that the results count, in the order of their starts: a study that grows has begun more of them."""
    if cell.tsr is None or not (folder / layout.EPISODES).exists():
        return []
    records = sorted(read_episodes(folder), key=lambda r: (r.start.task, r.start.index))
    by_task = itertools.groupby(records, key=lambda r: str(r.start.task))
    counts = {task: count.episodes for task, count in cell.tsr.per_task.items()}
    return [record for task, found in by_task for record in itertools.islice(found, counts.get(task, 0))]


def _outcome(record: EpisodeRecord) -> str:
    reached = record.reached
    if record.success:
        return "success"
    return "grasped" if reached.grasped else "reached" if reached.approached else "nothing"


def _counted(arm: ConditionResult) -> list[str]:
    """The best outcome of each episode from totals alone, as if who succeeded had grasped, and who grasped reached."""
    assert arm.tsr is not None
    n, stages = arm.tsr.episodes, arm.stages
    known = n if stages is None or stages.episodes is None else stages.episodes
    shares = [getattr(stages, name, None) or 0.0 for name in ("grasped", "approached")]
    at_least = [arm.tsr.successes, *(round(share * known) for share in shares), n]
    kinds, before = [], 0
    for kind, count in zip(OUTCOMES, at_least, strict=True):
        kinds += [kind] * max(0, count - before)
        before = max(before, count)
    return kinds


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """A verdict as the story shows it: each comparison with its direction, and what was weighed beside them."""

    hypothesis: Hypothesis
    comparisons: Sequence[tuple[Comparison, str]]


def claims(results: Results) -> list[Claim]:
    """Those that were tested; checks are none."""
    return [
        Claim(h, [(c, direction(c, h)) for c in results.judged_by(h)])
        for h in results.hypotheses
        if h.comparisons and h.id not in CHECKS
    ]


def checks(results: Results) -> list[tuple[str, str]]:
    """Checks that were made, each with its numbers; a verdict that an earlier version gave them is not shown."""
    made = [(h, results.judged_by(h)) for h in results.hypotheses if h.id in CHECKS and h.comparisons]
    return [(SHORT[h.id], h.note if h.verdict == "check" else checked(against)) for h, against in made]


def not_asked(results: Results) -> str:
    """What was declared and not compared, as one line; empty if all was."""
    rest = [h for h in results.hypotheses if not h.comparisons]
    return "; ".join(SHORT.get(h.id, " against ".join(NAMES.get(id, id) for id in h.id.split(OVER))) for h in rest)


# ---------------------------------------------------------------- films


def first_pair(results: Results, films: Playlist) -> Playlist:
    """Two arms on one start for the first screen, from those that the player has; empty if there are none.

    Preferred are the arms of the first line where they disagree, then where one succeeds; then any two arms.
    """
    c = led_by(results)
    wanted = [c.a, c.b] if c else []

    def pair(scene: Scene) -> tuple[Film, ...]:
        of_arm = {film.arm: film for film in scene.films}
        return tuple(of_arm[arm] for arm in dict.fromkeys([*wanted, *of_arm]) if arm in of_arm)[:2]

    def interest(scene: Scene) -> tuple[bool, bool, bool]:
        ended = {film.video.success for film in scene.films}
        return [film.arm for film in scene.films] == wanted, len(ended) > 1, True in ended

    pairs = [replace(scene, films=two) for scene in films.scenes if len(two := pair(scene)) == 2]
    return Playlist((max(pairs, key=interest),) if pairs else (), 0, 0)
