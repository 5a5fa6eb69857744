"""What training and evaluation have in common, checked before a result counts.

Sharing instructions, objects and arenas is what is asked: a policy learns tasks and is tested on them in scenes that it
has not seen. Sharing an initial state, or a scene whose picture was trained on under another instruction, is a leak,
and a study with a leak decides nothing (`withheld`). What cannot be known is called unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from la_reconvla.analysis.comparisons import Hypothesis
from la_reconvla.analysis.measures import Leak
from la_reconvla.backbones.packaged import PACKAGED
from la_reconvla.data.captions import NOUNS, REQUESTS
from la_reconvla.data.demonstrations import Episode

SAME = 0.001  # metres: states whose objects are all within this of each other, seen from above, are one state
Layout = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Shown:
    """What a set of starts shows. Everything is known of ours; of foreign demonstrations some sets are empty.

    Attributes:
        ids: of the starts; a start without one is not in it.
        scenes: wide scenes, which occur with two instructions each.
        instructions: as they are told.
        kinds: of movable objects.
        targets: for each layout (suite before LIBERO-PRO's change, task) positions of the targets, x and y (m) [m 2].
        states: for each layout positions of all movable objects, x and y (m) [m o 2].
        tasks: ``suite/task``; of a suite that LIBERO-PRO changed those before the change.
    """

    ids: frozenset[str]
    scenes: frozenset[str]
    instructions: frozenset[str]
    kinds: frozenset[str]
    targets: Mapping[Layout, Float[np.ndarray, "m 2"]] = field(default_factory=dict)
    states: Mapping[Layout, Float[np.ndarray, "m o 2"]] = field(default_factory=dict)
    tasks: frozenset[str] = frozenset()


def same_state(id: str) -> str:
    """`id` without the split where that is a mere word: an official state is one state whatever it is counted to."""
    suite, task, placement, _, index = id.split("/")
    return f"{suite}/{task}/official/{index}" if placement == "official" else id


def wide_scene(id: str) -> str | None:
    """The scene of a wide start, which it shares with its partner; None for other starts."""
    suite, task, placement, split, index = id.split("/")
    return f"{suite}/{task}/wide/{split}/{int(index) // 2}" if placement == "wide" else None


def audit(training: Shown, evaluation: Shown, where: str = "") -> list[Leak]:
    """Overlap of training with one set of evaluation starts.

    Args:
        training: what was trained on.
        evaluation: what is evaluated on.
        where: name of the evaluation, added to what is compared.
    """
    place = f" ({where})" if where else ""
    heard = evaluation.instructions & training.instructions
    seen = evaluation.kinds & training.kinds
    new = ", ".join(sorted(evaluation.kinds - training.kinds)).replace("_", " ")
    result = [_states(training, evaluation, place)]
    if evaluation.scenes:
        known, note = bool(training.ids), "a wide scene has two instructions"
        result.append(_row(f"scenes{place}", training.scenes, evaluation.scenes, known, note))
    unheard = len(evaluation.instructions) - len(heard)
    result += [
        Leak(
            f"instructions{place}",
            len(training.instructions),
            len(evaluation.instructions),
            len(heard),
            "by design" if heard else "none",
            f"{unheard} of {len(evaluation.instructions)} were never heard in training",
        ),
        Leak(
            f"assets{place}",
            len(training.kinds),
            len(evaluation.kinds),
            len(seen),
            "unknown" if not training.kinds else "by design" if seen else "none",
            f"kinds of things; new ones: {new or 'none'}",
        ),
    ]
    return result


def _states(training: Shown, evaluation: Shown, place: str) -> Leak:
    """Initial states by name and by object positions, with the nearest training state's target."""
    shared, apart, count = len(training.ids & evaluation.ids), [], 0
    for layout, states in evaluation.states.items():
        known = training.states.get(layout)
        if known is not None and known.shape[1:] == states.shape[1:]:
            # of every evaluation state, how far its objects are from those of the nearest training state
            farthest = np.linalg.norm(states[:, None] - known[None], axis=-1).max(-1).min(1)
            count += int((farthest <= SAME).sum())
        if layout in training.targets and layout in evaluation.targets:
            gaps = np.linalg.norm(evaluation.targets[layout][:, None] - training.targets[layout][None], axis=-1)
            apart.extend(1000 * gaps.min(1))
    note = "no training state of these layouts to measure the distance to"
    if apart:
        least, middle = min(apart), float(np.median(apart))
        note = f"target to that of the nearest training state: {least:.1f} mm at least, {middle:.1f} mm median"
    if count:
        note += f"; {count} are within {1000 * SAME:.0f} mm of a training state in all objects"
    found = max(shared, count)
    verdict = "leak" if found else "none" if training.ids else "unknown"
    return Leak(f"initial states{place}", len(training.ids), len(evaluation.ids), found, verdict, note)


def _row(what: str, training: frozenset[str], evaluation: frozenset[str], known: bool, note: str) -> Leak:
    shared = len(training & evaluation)
    verdict = "leak" if shared else "none" if known else "unknown"
    return Leak(what, len(training), len(evaluation), shared, verdict, note)


def held_out(training: Iterable[Episode], others: Iterable[Episode]) -> Leak:
    """Scenes of the held-out frames, on which action error and attention are measured."""
    one, two = (frozenset(episode.scene for episode in side) for side in (training, others))
    return _row("scenes of held-out frames", one, two, True, "both from the same demonstrations, divided by scene")


def origin(run: str, starts: Iterable[str], others: Iterable[Episode]) -> Leak:
    """Scenes of held-out frames, and those that a run was trained on from whose weights training starts.

    Args:
        run: its name.
        starts: ids of the initial states that it was trained on; none if they are not known.
        others: episodes that are held out.
    """
    one, two = (
        frozenset(wide_scene(id) or same_state(id) for id in ids)
        for ids in (starts, (e.start_id for e in others if e.start_id is not None))
    )
    return _row(f"scenes of held-out frames and of {run}", one, two, bool(one and two), "its weights are the start")


def pretraining(
    weights: str | None,
    source: str | None,
    evaluation: Shown,
    acted: Mapping[str, Any] | None = None,
    where: str = "",
) -> list[Leak]:
    """What the backbone was trained on before the first step.

    Args:
        weights: start weights of the small backbone: a packaged name, another file, or None for random ones.
        source: a pretrained backbone's name, None for the small one.
        evaluation: what is evaluated on.
        acted: what the start weights record of their demonstrations
            (`la_reconvla.training.start_weights.StartWeights`); None for none.
        where: name of the evaluation, added to what is compared.
    """
    kinds, place = evaluation.kinds, f" ({where})" if where else ""
    if source is None and weights is None:
        return [Leak(f"pretraining{place}", 0, len(kinds), 0, "none", "random weights")]
    if source is not None or (weights not in PACKAGED and acted is None):
        name = source or "the file of start weights"
        return [
            Leak(f"pretraining{place}", 0, len(kinds), 0, "unknown", f"what {name} was trained on is not known here")
        ]
    forms = [re.compile(re.escape(wording).replace(r"\{0\}", ".+").replace(r"\{1\}", ".+")) for wording in REQUESTS]
    read = sum(any(form.fullmatch(text) for form in forms) for text in evaluation.instructions)
    note = (
        f"{weights} read captions of random arrangements in LIBERO's arenas: the same kinds of things, rendered, with "
        f"their nouns and relations; {read} of {len(evaluation.instructions)} instructions have the form of a request "
        "that it read; no initial state of a task"
        + ("" if acted else " and no action")
        + "; all arms start from it alike"
    )
    rows = [_by_design(f"pretraining{place}", frozenset(NOUNS), kinds, note)]
    if acted is not None:
        rows += _acted(str(weights), acted, evaluation, place)
    return rows


def _acted(weights: str, acted: Mapping[str, Any], evaluation: Shown, place: str) -> list[Leak]:
    """The tasks and instructions of the demonstrations that the start weights learnt from, beside those evaluated."""
    known = frozenset(f"{suite}/{task}" for suite, task in acted["tasks"])
    told = frozenset(acted["instructions"])
    found, heard = known & evaluation.tasks, told & evaluation.instructions
    note = f"{weights} learnt to act from demonstrations of {', '.join(sorted(known))}"
    if found:
        note += f"; {', '.join(sorted(found))} are not new to it"
    words = f"{len(evaluation.instructions) - len(heard)} of {len(evaluation.instructions)} were never heard in it"
    return [
        _by_design(f"tasks of pretraining{place}", known, evaluation.tasks, note),
        _by_design(f"instructions of pretraining{place}", told, evaluation.instructions, words),
    ]


def _by_design(what: str, training: frozenset[str], evaluation: frozenset[str], note: str) -> Leak:
    """What may be shared: it is said, and is no leak."""
    found = len(training & evaluation)
    return Leak(what, len(training), len(evaluation), found, "by design" if found else "none", note)


def withheld(hypotheses: Sequence[Hypothesis], leakage: Sequence[Leak]) -> list[Hypothesis]:
    """The hypotheses, none of them decided if anything leaked; their notes begin with the reason."""
    leaks = [leak for leak in leakage if leak.verdict == "leak"]
    if not leaks:
        return list(hypotheses)
    found = ", ".join(f"{leak.shared} {leak.what}" for leak in leaks)
    reason = f"LEAK: training and evaluation share {found}. No verdict is given until they are apart."
    return [replace(h, verdict="inconclusive", note=f"{reason} {h.note}".strip()) for h in hypotheses]
