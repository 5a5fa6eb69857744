"""CALVIN's long-horizon protocol (Mees et al. 2022, arXiv 2112.03227): what is asked for, and where it begins.

A sequence is five subtasks in a row from one initial state; the next is asked for only where the one before was done.
The 1000 published sequences begin in 192 states: states are what an interval must resample, not sequences.

They are made here, not stored, and their hash is known: legacy streams of numpy, seeded by the number of the state,
draw subtasks until five of them can follow each other. Poses of the blocks are drawn under FNV-1 of the state.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from la_reconvla.errors import UserError

SUITE = "calvin"
PUBLISHED, LENGTH = 1000, 5  # sequences, and subtasks of one
COLOURS, SIDES = ("red", "blue", "pink"), ("right", "left")
State = Mapping[str, Any]
"""led, lightbulb (0, 1), slider (left, right), drawer (open, closed), three blocks (a place), grasped (0, 1)."""


@dataclass(frozen=True)
class Rule:
    """One way to do a subtask: it needs values, some of them any of several, and makes others."""

    needs: dict[str, tuple[Any, ...]]
    makes: dict[str, Any]

    def after(self, state: State) -> State | None:
        """The state after it; None where it cannot be done."""
        return {**state, **self.makes} if all(state[k] in allowed for k, allowed in self.needs.items()) else None


@dataclass(frozen=True)
class Subtask:
    """What can be asked for.

    Attributes:
        name: CALVIN's, which its oracle knows.
        says: the instruction of the evaluation.
        kind: a sequence has at most one subtask of each kind.
        rules: how it can be done.
    """

    name: str
    says: str
    kind: str
    rules: tuple[Rule, ...]


def _rule(needs: dict[str, Any], makes: dict[str, Any], hand: int = 0) -> Rule:
    every = {**needs, "grasped": hand}
    return Rule({key: value if isinstance(value, tuple) else (value,) for key, value in every.items()}, makes)


def _subtasks() -> Iterator[Subtask]:
    blocks = {colour: f"{colour}_block" for colour in COLOURS}
    for verb, kind, words in (
        ("rotate", "on the table", "take the {} block and rotate it to the {}"),
        ("push", "on the table", "go push the {} block {}"),
    ):
        for (colour, block), side in itertools.product(blocks.items(), SIDES):
            stays = _rule({block: "table"}, {block: "table"})
            yield Subtask(f"{verb}_{block}_{side}", words.format(colour, side), kind, (stays,))
    for here, there in (SIDES, SIDES[::-1]):
        words = f"push the sliding door to the {there} side"
        yield Subtask(f"move_slider_{there}", words, "slider", (_rule({"slider": here}, {"slider": there}),))
    for verb, way, here, there in (("open", "pull", "closed", "open"), ("close", "push", "open", "closed")):
        words = f"{way} the handle to {verb} the drawer"
        yield Subtask(f"{verb}_drawer", words, "drawer", (_rule({"drawer": here}, {"drawer": there}),))
    for colour, block in blocks.items():
        lifted = {block: "grasped", "grasped": 1}
        behind = [_rule({block: f"slider_{side}", "slider": door}, lifted) for side, door in _behind()]
        for place, words, rules in (
            ("table", f"grasp and lift the {colour} block", [_rule({block: "table"}, lifted)]),
            ("slider", f"lift the {colour} block from the sliding cabinet", behind),
            (
                "drawer",
                f"Take the {colour} block from the drawer",
                [_rule({block: "drawer", "drawer": "open"}, lifted)],
            ),
        ):
            yield Subtask(f"lift_{block}_{place}", words, f"lift, {place}", tuple(rules))
    into = [
        _rule({b: "grasped", "slider": door}, {b: f"slider_{door}", "grasped": 0}, hand=1)
        for b in blocks.values()
        for door in SIDES
    ]
    yield Subtask("place_in_slider", "store the grasped block in the sliding cabinet", "place", tuple(into))
    into = [_rule({b: "grasped", "drawer": "open"}, {b: "drawer", "grasped": 0}, hand=1) for b in blocks.values()]
    yield Subtask("place_in_drawer", "store the grasped block in the drawer", "place", tuple(into))
    pairs = [(a, b) for a, b in itertools.permutations(blocks.values(), 2)]
    top, under = "stacked_top", "stacked_bottom"
    stacked = [_rule({a: "grasped", b: "table"}, {a: top, b: under, "grasped": 0}, hand=1) for a, b in pairs]
    apart = [_rule({a: top, b: under}, {a: "table", b: "table"}) for a, b in pairs]
    yield Subtask("stack_block", "stack the grasped block", "stack", tuple(stacked))
    yield Subtask("unstack_block", "remove the stacked block", "unstack", tuple(apart))
    for light, words in (
        ("lightbulb", "use the switch to turn {} the light bulb"),
        ("led", "press the button to turn {} the led light"),
    ):
        for word, value in (("on", 1), ("off", 0)):
            rule = _rule({light: 1 - value}, {light: value})
            yield Subtask(f"turn_{word}_{light}", words.format(word), "light", (rule,))
    away = ("slider_right", "slider_left")
    pushed = [
        _rule({b: away for b in blocks.values()} | {block: "table", "drawer": "open"}, {block: "drawer", "grasped": 0})
        for block in blocks.values()
    ]
    yield Subtask("push_into_drawer", "slide the block that it falls into the drawer", "push into", tuple(pushed))


def _behind() -> tuple[tuple[str, str], ...]:
    """A place of the cabinet, and where its door must be to reach it."""
    return (("left", "right"), ("right", "left"))


SUBTASKS = {subtask.name: subtask for subtask in _subtasks()}
"""By name; the order is that of the published code, from which legacy streams draw."""
_NAMES = tuple(SUBTASKS)


# ---------------------------------------------------------------- sequences


@dataclass(frozen=True, eq=False)
class Sequence:
    """One sequence.

    Attributes:
        index: its place in the published list.
        state_index: number of its initial state, 0 to 191.
        state: that state.
        subtasks: names of five subtasks.
    """

    index: int
    state_index: int
    state: State
    subtasks: tuple[str, ...]


@functools.cache
def initial_states() -> tuple[State, ...]:
    """All 192: one or two blocks on the table, and no two at one place of the cabinet."""
    places = ("table", "slider_right", "slider_left")
    values = itertools.product((0, 1), (0, 1), SIDES, ("closed", "open"), *(places,) * len(COLOURS))
    keys = ("led", "lightbulb", "slider", "drawer", *(f"{colour}_block" for colour in COLOURS))
    states = [dict(zip(keys, row, strict=True)) | {"grasped": 0} for row in values]

    def allowed(state: State) -> bool:
        at = [state[f"{colour}_block"] for colour in COLOURS]
        return at.count("table") in (1, 2) and max(at.count(place) for place in places[1:]) < 2

    return tuple(state for state in states if allowed(state))


def published_sequences(count: int = PUBLISHED) -> list[Sequence]:
    """The first `count` of the published list; all of them take some 20 seconds.

    Raises:
        UserError: there are not so many, or none was asked for.
    """
    require_count(count)
    states = initial_states()
    shares = [len(part) for part in np.array_split(np.arange(PUBLISHED), len(states))]
    drawn = [(number, nth) for number, share in enumerate(shares) for nth in range(share)]
    np.random.RandomState(0).shuffle(drawn)
    return [
        Sequence(index, number, states[number], _sequences_of(number, shares[number])[nth])
        for index, (number, nth) in enumerate(drawn[:count])
    ]


def require_count(count: int) -> None:
    """Raise a `UserError` for so many sequences as are not in the list."""
    if not 1 <= count <= PUBLISHED:
        raise UserError(f"CALVIN's list has {PUBLISHED} sequences: ask for 1 to {PUBLISHED}, not {count}")


@functools.cache
def _sequences_of(number: int, share: int) -> tuple[tuple[str, ...], ...]:
    """So many sequences from an initial state: five subtasks at random, until they can follow each other."""
    rng, state, found = np.random.RandomState(number), initial_states()[number], []
    first = [any(rule.after(state) for rule in subtask.rules) for subtask in SUBTASKS.values()]
    while len(found) < share:
        drawn = rng.permutation(len(_NAMES))  # what `choice` without replacement draws, and nearly all begin wrongly
        if first[drawn[0]] and possible(state, names := tuple(_NAMES[i] for i in drawn[:LENGTH])):
            found.append(names)
    return tuple(found)


def possible(state: State, names: tuple[str, ...]) -> bool:
    """Whether subtasks of different kinds can follow each other from a state, each in exactly one way."""
    for name in names:
        after = [found for rule in SUBTASKS[name].rules if (found := rule.after(state)) is not None]
        if len(after) != 1:
            return False
        state = after[0]
    return len({SUBTASKS[name].kind for name in names}) == len(names)


# ---------------------------------------------------------------- where it begins

ROBOT = np.array(  # position (m), Euler angles (rad), width between the fingers (m), seven joints (rad), gripper open
    [
        *(0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963),
        *(-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0),
    ]
)
_CABINET = {
    "slider_left": np.array([-2.40851662e-01, 9.24044687e-02, 4.60990009e-01]),
    "slider_right": np.array([7.03416330e-02, 9.24044687e-02, 4.60990009e-01]),
}
_TABLE = (
    np.array([5.00000896e-02, -1.20000177e-01, 4.59990009e-01]),
    np.array([2.29995412e-01, -1.19995140e-01, 4.59990010e-01]),
)
_TURN = np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8  # of a block around the vertical axis (rad)


def fnv1(data: bytes) -> int:
    """FNV-1 of 32 bits with the initial value 0, as the package pyhash has it."""
    value = 0
    for byte in data:
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value


def start_seed(state: State) -> int:
    """Seed of the blocks' poses: of the state's values as Python 3 prints them, in the UTF-16 that pyhash hashes."""
    return fnv1(str(dict(state).values()).encode("utf-16-le"))


def scene_at(state: State) -> Float[np.ndarray, "24"]:
    """The scene's observation: doors, button, switch, lights, then position and Euler angles of three blocks."""
    rng = np.random.RandomState(start_seed(state))
    order = [0, 1]
    rng.shuffle(order)
    free = [_TABLE[place] for place in order]
    scene = np.zeros(24)
    scene[0] = 0.28 if state["slider"] == "left" else 0.0
    scene[1] = 0.22 if state["drawer"] == "open" else 0.0
    scene[3] = 0.088 if state["lightbulb"] else 0.0
    scene[4:6] = state["lightbulb"], state["led"]
    taken = 0
    for number, colour in enumerate(COLOURS):
        place, pose = state[f"{colour}_block"], scene[6 + 6 * number : 12 + 6 * number]
        if place in _CABINET:
            pose[:3] = _CABINET[place]
        else:  # the last colour has the second place, also where the first is free
            pose[:3] = free[1 if colour == COLOURS[-1] else taken]
            taken += 1
        pose[5] = rng.uniform(*_TURN)
    return scene
