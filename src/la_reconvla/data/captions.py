"""Sentences about scenes: which thing they mean, and of which pictures they are true.

A sentence is a *wording* around an *expression* ("the black bowl next to the plate"). An expression is true of a
picture if something visible in it is meant. Learning is given this alone: whether sentence i is true of picture
j, never where. What is too close to call (`UNSURE`) is left out of every loss.

Held out from training, to measure what was learnt and not remembered: arrangements (another split of
`la_reconvla.sim.scenes`), pairs of things in a relation (`held_out_pair`) and wordings (`HELD_OUT_WORDINGS`).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from la_reconvla.data.scenes import Scenes
from la_reconvla.data.starts import object_kind

FALSE, UNSURE, TRUE = 0.0, 0.5, 1.0  # a conjunction is the least of its terms, a disjunction the greatest
VISIBLE = 20  # pixels at 112 x 112; fewer are too few to call

NOUNS = {
    "akita_black_bowl": ("black bowl", "akita black bowl", "bowl"),
    "cookies": ("cookies box", "cookie box", "box of cookies"),
    "glazed_rim_porcelain_ramekin": ("ramekin", "white ramekin"),
    "plate": ("plate", "white plate"),
    "cream_cheese": ("cream cheese", "cream cheese box"),
    "wine_bottle": ("wine bottle", "bottle of wine"),
    "basket": ("basket", "white basket"),
    "alphabet_soup": ("alphabet soup", "soup"),
    "salad_dressing": ("salad dressing", "dressing"),
    "milk": ("milk", "box of milk"),
    "tomato_sauce": ("tomato sauce",),
    "butter": ("butter", "box of butter"),
    "bbq_sauce": ("bbq sauce",),
    "chocolate_pudding": ("chocolate pudding", "pudding"),
    "ketchup": ("ketchup", "bottle of ketchup"),
    "orange_juice": ("orange juice", "juice"),
}

NAMES = ("the {0}", "a {0}", "{0}")
WORDINGS = (
    *NAMES,
    "there is a {0}",
    "here is the {0}",
    "find the {0}",
    "look at the {0}",
    "a picture of a {0}",
    "pick up the {0}",
    "pick the {0}",
    "grab the {0}",
    "lift the {0}",
    "take the {0}",
    "move the {0}",
    "reach for the {0}",
    "put the {0} in the {1}",
    "put the {0} on the {1}",
    "place the {0} on the {1}",
    "place the {0} in the {1}",
    "bring the {0} to the {1}",
    "set the {0} on the {1}",
    "take the {0} and put it on the {1}",
    "take the {0} and place it in the {1}",
    "pick up the {0} and put it in the {1}",
    "pick up the {0} and place it in the {1}",
    "pick the {0} and place it on the {1}",
    "grab the {0} and place it on the {1}",
    "lift the {0} and put it in the {1}",
    "move the {0} and place it in the {1}",
)
REQUESTS = tuple(wording for wording in WORDINGS if "{1}" in wording)
HELD_OUT_WORDINGS = (
    "pick up the {0} and place it on the {1}",
    "move the {0} to the {1}",
    "grab the {0} and put it in the {1}",
    "lift the {0} and place it on the {1}",
    "where is the {0}",
    "this is a {0}",
    "could you bring me the {0}",
    "transfer the {0} onto the {1}",
)


# ---------------------------------------------------------------- relations: words and geometry


class Relation(Protocol):
    """The place that an expression names."""

    @property
    def phrases(self) -> tuple[str, ...]:
        """Wordings; ``{0}`` and ``{1}`` are the things it refers to."""
        ...

    @property
    def places(self) -> int:
        """How many things it refers to."""
        ...

    def __call__(
        self, at: Float[np.ndarray, "m 2"], others: Sequence[Float[np.ndarray, "m 2"]]
    ) -> Float[np.ndarray, " m"]:
        """FALSE, UNSURE or TRUE for things at `at`, in metres in the world; NaN positions give FALSE."""
        ...


def _graded(value: Float[np.ndarray, " m"], yes: float, no: float) -> Float[np.ndarray, " m"]:
    """TRUE up to `yes`, UNSURE up to `no`, FALSE beyond."""
    return np.where(value <= yes, TRUE, np.where(value <= no, UNSURE, FALSE))


@dataclass(frozen=True)
class NextTo:
    """Centres at most 16 cm apart, as LIBERO's states are; beyond 20 cm it is false."""

    phrases = ("next to the {0}", "close to the {0}", "beside the {0}")
    places = 1

    def __call__(self, at, others):
        return _graded(np.linalg.norm(at - others[0], axis=-1), 0.16, 0.20)


@dataclass(frozen=True)
class Between:
    """At most 5 cm from the middle of two things that are at most 40 cm apart; beyond 8 cm it is false."""

    phrases = ("between the {0} and the {1}",)
    places = 2

    def __call__(self, at, others):
        middle = np.linalg.norm(at - (others[0] + others[1]) / 2, axis=-1)
        return np.minimum(
            _graded(middle, 0.05, 0.08), _graded(np.linalg.norm(others[0] - others[1], axis=-1), 0.40, 0.45)
        )


@dataclass(frozen=True)
class Centre:
    """At most 10 cm from the middle of LIBERO's table centre; beyond 13 cm it is false."""

    phrases = ("from table center", "in the table center")
    places = 0

    def __call__(self, at, others):
        return _graded(np.linalg.norm(at - np.array([-0.075, 0.0]), axis=-1), 0.10, 0.13)


@dataclass(frozen=True)
class Side:
    """On one side of the picture: `sign` times coordinate `axis` is at least `beyond`; 6 cm less is false."""

    word: str
    axis: int
    sign: int
    beyond: float
    places = 0

    @property
    def phrases(self) -> tuple[str, ...]:
        """Two wordings."""
        return (f"on the {self.word}", f"on the {self.word} of the table")

    def __call__(self, at, others):
        return _graded(-self.sign * at[..., self.axis], -self.beyond, 0.06 - self.beyond)


SIDES = (Side("left", 1, 1, 0.12), Side("right", 1, -1, 0.05), Side("front", 0, 1, 0.06), Side("back", 0, -1, 0.12))
# Chance that a caption uses it, where something in the picture allows it; the rest name a thing alone.
RELATIONS: tuple[tuple[Relation, float], ...] = (
    (NextTo(), 0.35),
    (Between(), 0.10),
    (Centre(), 0.05),
    *((side, 0.03) for side in SIDES),
)


def held_out_pair(one: str, other: str) -> bool:
    """Whether "next to" never joins the two in training, in either order: bowls and plates, and a fifth of the rest.

    Of the bowls, the only things of which there are two, one pair is enough: that is the test of relations.
    """
    first, second = sorted((one, other))
    if first == "akita_black_bowl":
        return second == "plate"
    return zlib.crc32(f"{first}/{second}".encode()) % 5 == 0


# ---------------------------------------------------------------- expressions and captions


@dataclass(frozen=True)
class Expression:
    """A kind of thing, and where it is: what a caption means.

    Attributes:
        target_kind: of the thing meant.
        relation: None for any of this kind.
        others: kinds that the relation refers to.
    """

    target_kind: str
    relation: Relation | None = None
    others: tuple[str, ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether training never uses this wording."""
        return len(self.others) == 1 and held_out_pair(self.target_kind, self.others[0])

    def meant(self, scenes: Scenes, chosen: np.ndarray) -> Float[np.ndarray, "m o"]:
        """FALSE, UNSURE or TRUE for each instance of the scenes `chosen`: is it what the expression means?"""
        kinds = [object_kind(name) for name in scenes.instances]
        visible = _visible(scenes, chosen)
        result = np.where(np.array(kinds) == self.target_kind, visible, FALSE)
        if self.relation is None:
            return result
        columns = [[i for i, k in enumerate(kinds) if k == other] for other in self.others]
        at = scenes.positions[chosen]
        truth = np.full_like(result, FALSE)
        for picked in np.ndindex(*(len(column) for column in columns)):  # any of several alike things will do
            others = [column[i] for column, i in zip(columns, picked, strict=True)]
            there = np.min([visible[:, other] for other in others], axis=0) if others else TRUE
            for i in np.flatnonzero(np.array(kinds) == self.target_kind):
                if i in others:
                    continue
                holds = self.relation(at[:, i], [at[:, other] for other in others])
                truth[:, i] = np.maximum(truth[:, i], np.minimum(holds, there))
        return np.minimum(result, truth)


@dataclass(frozen=True)
class Caption:
    """A sentence, what it means, and what it mentions as a place to put that."""

    text: str
    expression: Expression
    onto: str | None = None

    def truth(self, scenes: Scenes, chosen: np.ndarray) -> Float[np.ndarray, " m"]:
        """FALSE, UNSURE or TRUE for each of the scenes `chosen`.

        Where the place to put it is not visible, a request is UNSURE: that place alone would decide.
        """
        holds = self.expression.meant(scenes, chosen).max(-1)
        if self.onto is None:
            return holds
        there = Expression(self.onto).meant(scenes, chosen).max(-1)
        return np.where(there < TRUE, UNSURE, holds)


def _visible(scenes: Scenes, chosen: np.ndarray) -> Float[np.ndarray, "m o"]:
    pixels = scenes.pixels[chosen]
    return np.where(pixels >= VISIBLE, TRUE, np.where(pixels > 0, UNSURE, FALSE))


def expressions(kinds: Sequence[str]) -> list[Expression]:
    """Everything that can be said of things of these kinds, held-out expressions included, in a fixed order."""
    kinds = sorted(set(kinds))
    said = [Expression(kind) for kind in kinds]
    for relation, _ in RELATIONS:
        for kind in kinds:
            rest = [other for other in kinds if other != kind]
            said += [Expression(kind, relation, others) for others in itertools.combinations(rest, relation.places)]
    return said


def draw(rng: np.random.Generator, groups: Mapping[Relation | None, Sequence[Expression]]) -> Expression:
    """One of some expressions, its relation by the shares of `RELATIONS`.

    Args:
        rng: where choices come from.
        groups: at least one expression for each relation, None for those without one.
    """
    shares: dict[Relation | None, float] = {relation: share for relation, share in RELATIONS if relation in groups}
    if None in groups:
        shares[None] = 1.0 - sum(share for _, share in RELATIONS)
    weights = np.array(list(shares.values()))
    among = groups[list(shares)[rng.choice(len(shares), p=weights / weights.sum())]]
    return among[int(rng.integers(len(among)))]


def say(
    rng: np.random.Generator, expression: Expression, onto: str | None, wordings: Sequence[str] = WORDINGS
) -> Caption:
    """Put an expression into words; wordings with a place to put it are used only where `onto` is given."""
    fitting = [w for w in wordings if onto is not None or "{1}" not in w]
    wording = fitting[rng.integers(len(fitting))]
    where = ""
    if expression.relation is not None:
        others = [_pick(rng, NOUNS[other]) for other in expression.others]
        if len(others) == 2 and rng.random() < 0.5:
            others.reverse()
        where = f" {_pick(rng, expression.relation.phrases).format(*others)}"
    if onto is None or "{1}" not in wording:
        onto = None
    destination = _pick(rng, NOUNS[onto]) if onto else ""
    noun = _pick(rng, NOUNS[expression.target_kind])  # last: with another noun the rest of the sentence is drawn alike
    return Caption(wording.format(noun + where, destination), expression, onto)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


class Captioner:
    """Draws captions of scenes; what is true of each scene is determined once.

    Attributes:
        scenes: the scenes.
        arenas: the numbers of the scenes of each arena.
        shares: share of the scenes that each arena has.
    """

    def __init__(self, scenes: Scenes):
        self.scenes = scenes
        names = sorted(set(scenes.arenas))
        self.arenas = [np.flatnonzero(np.array(scenes.arenas) == name) for name in names]
        self.shares = [len(arena) / len(scenes) for arena in self.arenas]
        self._true: dict[int, list[Expression]] = {index: [] for index in range(len(scenes))}
        for arena in self.arenas:
            there = ~np.isnan(scenes.positions[arena, :, 0]).all(0)
            for expression in expressions([object_kind(scenes.instances[i]) for i in np.flatnonzero(there)]):
                for index in arena[expression.meant(scenes, arena).max(-1) == TRUE]:
                    self._true[index].append(expression)

    def true_of(self, index: int) -> list[Expression]:
        """Every expression that is true of scene `index`, held-out ones included, in a fixed order."""
        return self._true[index]

    def caption(
        self,
        rng: np.random.Generator,
        index: int,
        *,
        relations: bool = True,
        wordings: Sequence[str] = WORDINGS,
    ) -> Caption | None:
        """A caption that is true of scene `index`, by the shares of `RELATIONS`; None if nothing can be said.

        Args:
            rng: where choices come from.
            index: the scene.
            relations: False names objects without their places.
            wordings: the sentences to choose from.
        """
        known = [e for e in self.true_of(index) if not e.held_out and (relations or e.relation is None)]
        groups: dict[Relation | None, list[Expression]] = {}
        for e in known:
            groups.setdefault(e.relation, []).append(e)
        if not groups:
            return None
        expression = draw(rng, groups)
        plain = (e.target_kind for e in self.true_of(index) if e.relation is None)
        there = [kind for kind in plain if kind != expression.target_kind]
        return say(rng, expression, there[rng.integers(len(there))] if there else None, wordings)
