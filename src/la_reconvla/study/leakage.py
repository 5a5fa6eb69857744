"""What starts and demonstrations show, for the audit of `la_reconvla.analysis.leakage`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from la_reconvla.analysis.leakage import Layout, Shown, same_state, wide_scene
from la_reconvla.data.demonstrations import Episode
from la_reconvla.data.starts import Start, object_kind
from la_reconvla.sim import toy
from la_reconvla.sim.tasks import base_of, positions_in


def shown_by(starts: Iterable[Start]) -> Shown:
    """What evaluation starts show."""
    starts = list(starts)
    facts = [(s.id, s.suite, s.task, s.target, s.instruction, np.asarray(s.state)) for s in starts]
    return _shown(facts, {s.instruction for s in starts})


def shown_in(episodes: Iterable[Episode]) -> Shown:
    """What demonstrations began with: the settled state before their first action."""
    episodes = list(episodes)
    facts = [
        (e.start_id, e.suite, e.task, e.target, e.instruction, e.states()[0])
        for e in episodes
        if e.start_id is not None and e.suite is not None and e.task is not None and e.target is not None
    ]
    return _shown(facts, {e.instruction for e in episodes})


def _shown(facts: Sequence[tuple[str, str, int, str, str, np.ndarray]], told: set[str]) -> Shown:
    kinds: set[str] = set()
    targets: dict[Layout, list[np.ndarray]] = {}
    states: dict[Layout, list[np.ndarray]] = {}
    for _, suite, index, target, _, state in facts:
        if suite == toy.SUITE:
            continue  # the toy's states tell no places
        places, layout = positions_in(suite, index, state), (base_of(suite), index)
        kinds |= {object_kind(name) for name in places}
        if places:
            states.setdefault(layout, []).append(np.stack(list(places.values())))
        if target in places:
            targets.setdefault(layout, []).append(places[target])
    return Shown(
        ids=frozenset(same_state(fact[0]) for fact in facts),
        scenes=frozenset(scene for fact in facts if (scene := wide_scene(fact[0]))),
        instructions=frozenset(told),
        kinds=frozenset(kinds),
        tasks=frozenset(f"{base_of(suite)}/{index}" for _, suite, index, *_ in facts),
        targets={layout: np.stack(found) for layout, found in targets.items()},
        states={layout: np.stack(found) for layout, found in states.items()},
    )
