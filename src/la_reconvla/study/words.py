"""Does a word's attention find what it means? On held-out scenes, beside the controls that could explain it away.

Every question is a sentence and a scene in which it means exactly one visible thing. Asked is

- **named**: is the thing named looked at more than every other thing in the scene? Chance is 1 in m;
- **told apart**: of two alike things that a relation tells apart, is the one meant looked at more? Chance is 1/2;
- **pointing**, **auroc**, **aid**: see `la_reconvla.study.grounding`; aid is taken against the sentence of another
  thing of the same scene.

How much a thing is looked at is the highest score of the patches that it covers to a quarter, or, if it covers none
so far, of the one that it covers most. Where two things share that patch, a win counts half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from la_reconvla.data.captions import (
    FALSE,
    HELD_OUT_WORDINGS,
    TRUE,
    VISIBLE,
    WORDINGS,
    Captioner,
    Expression,
    kind,
    say,
)
from la_reconvla.data.samples import patch_coverage
from la_reconvla.data.scenes import Scenes
from la_reconvla.study import grounding

COVERED = 0.25  # share of a patch that a thing must cover for the patch to be its own

Look = Callable[[UInt8[np.ndarray, "b H W 3"], list[str]], Float[np.ndarray, "b n"]]


@dataclass(frozen=True)
class Question:
    """One sentence about one scene.

    Attributes:
        scene: its number.
        text: the sentence.
        target: column of the instance that it means.
        alike: column of the other instance of that kind that is visible and not meant, -1 if there is none.
        held_out_pair: whether training never named this pair.
        other: a sentence that means another thing of the scene; the wrong word.
    """

    scene: int
    text: str
    target: int
    alike: int
    held_out_pair: bool
    other: str


def questions(scenes: Scenes, seed: int = 0, *, held_out_wordings: bool = True) -> list[Question]:
    """Every thing named alone, and every relation that tells two alike things apart; one wording each, drawn.

    Args:
        scenes: scenes of the test split.
        seed: of the wordings.
        held_out_wordings: wordings that training never used, or those that it did.
    """
    rng = np.random.default_rng(seed)
    wordings = HELD_OUT_WORDINGS if held_out_wordings else WORDINGS
    captioner, result = Captioner(scenes), []
    kinds = [kind(name) for name in scenes.instances]
    for index in range(len(scenes)):
        seen = scenes.pixels[index] >= VISIBLE
        told = []
        for expression in captioner.true_of(index):
            meant = expression.meant(scenes, np.array([index]))[0]
            if (meant != FALSE).sum() != 1 or meant.max() != TRUE:
                continue  # it means nothing here, or more than one thing
            target = int(meant.argmax())
            twins = [i for i, k in enumerate(kinds) if k == expression.head and i != target and seen[i]]
            if expression.relation is None or twins:
                told.append((expression, target, twins[0] if twins else -1))
        for expression, target, alike in told:
            others = sorted({kinds[i] for i in np.flatnonzero(seen)} - {expression.head})
            if not others:
                continue
            onto, wrong = others[rng.integers(len(others))], others[rng.integers(len(others))]
            result.append(
                Question(
                    index,
                    say(rng, expression, onto, wordings).text,
                    target,
                    alike,
                    expression.held_out,
                    say(rng, Expression(wrong), None, wordings).text,
                )
            )
    return result


def coverage(scenes: Scenes, grid: tuple[int, int]) -> Float[np.ndarray, "m o n"]:
    """Share of each patch that each instance covers, float32."""
    return np.stack([patch_coverage(scenes.maps == i + 1, grid) for i in range(len(scenes.instances))], 1)


def looked_at(maps: Float[np.ndarray, "q n"], covered: Float[np.ndarray, "q o n"]) -> Float[np.ndarray, "q o"]:
    """How much each thing is looked at, see the module; -inf for what is not in the scene."""
    most = covered.max(-1, keepdims=True)
    own = (covered >= np.minimum(COVERED, most)) & (covered > 0)
    return np.where(own, maps[:, None], -np.inf).max(-1)


@dataclass(frozen=True, eq=False)
class Answers:
    """What came of the questions; one value each, NaN where it does not apply."""

    named: Float[np.ndarray, "q"]
    named_chance: Float[np.ndarray, "q"]
    told_apart: Float[np.ndarray, "q"]
    told_apart_held_out: Float[np.ndarray, "q"]
    pointing: Float[np.ndarray, "q"]
    auroc: Float[np.ndarray, "q"]
    aid: Float[np.ndarray, "q"]

    def means(self) -> dict[str, float]:
        """The mean of each, over the questions to which it applies."""
        return {name: float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for name, v in vars(self).items()}

    def counts(self) -> dict[str, int]:
        """How many questions each mean rests on."""
        return {name: int(np.isfinite(v).sum()) for name, v in vars(self).items()}


def judge(
    asked: Sequence[Question],
    maps: Float[np.ndarray, "q n"],
    wrong: Float[np.ndarray, "q n"],
    scenes: Scenes,
    grid: tuple[int, int],
) -> Answers:
    """Score maps, one a question; `wrong` are those of the wrong word."""
    covered = coverage(scenes, grid)[[q.scene for q in asked]]
    targets = np.array([q.target for q in asked])
    alike = np.array([q.alike for q in asked])
    each = np.arange(len(asked))
    visible = scenes.pixels[[q.scene for q in asked]] >= VISIBLE
    scores = np.where(visible, looked_at(maps, covered), -np.inf)
    own = scores[each, targets]
    rivals = scores.copy()
    rivals[each, targets] = -np.inf
    alone, paired = alike < 0, alike >= 0
    twin = scores[each, np.maximum(alike, 0)]
    apart = np.where(paired, _won(own, twin), np.nan)
    held_out = np.array([q.held_out_pair for q in asked])
    measured = grounding.measure(maps, covered[each, targets], threshold=COVERED)
    return Answers(
        named=np.where(alone, _won(own, rivals.max(1)), np.nan),
        named_chance=np.where(alone, 1 / visible.sum(1), np.nan),
        told_apart=np.where(held_out, np.nan, apart),
        told_apart_held_out=np.where(held_out, apart, np.nan),
        pointing=measured.pointing,
        auroc=measured.auroc,
        aid=grounding.instruction_difference(maps, wrong),
    )


def _won(own: Float[np.ndarray, "q"], rival: Float[np.ndarray, "q"]) -> Float[np.ndarray, "q"]:
    return np.where(own > rival, 1.0, np.where(own == rival, 0.5, 0.0))


def ask(look: Look, asked: Sequence[Question], scenes: Scenes, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Maps [q n] under each question's sentence and under its wrong word."""
    maps: list[list[np.ndarray]] = [[], []]
    for at in range(0, len(asked), batch_size):
        part = asked[at : at + batch_size]
        images = scenes.images[[q.scene for q in part]]
        maps[0].append(look(images, [q.text for q in part]))
        maps[1].append(look(images, [q.other for q in part]))
    return np.concatenate(maps[0]), np.concatenate(maps[1])


def mean_maps(asked: Sequence[Question], maps: Float[np.ndarray, "q n"]) -> Float[np.ndarray, "q n"]:
    """The control that looks at everything nameable at once: the mean map of all sentences about the same scene."""
    scene: Int[np.ndarray, "q"] = np.array([q.scene for q in asked])
    return np.stack([maps[scene == s].mean(0) for s in scene])


def centre_prior(scenes: Scenes, grid: tuple[int, int]) -> Float[np.ndarray, "n"]:
    """The control that ignores picture and words: where things stand on average in these (training) scenes."""
    return coverage(scenes, grid).sum(1).mean(0) + 1e-6
