"""Sentences to ask attention about: each means exactly one visible thing of one held-out scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from la_reconvla.data.captions import (
    FALSE,
    HELD_OUT_WORDINGS,
    TRUE,
    VISIBLE,
    WORDINGS,
    Captioner,
    Expression,
    say,
)
from la_reconvla.data.scenes import Scenes
from la_reconvla.data.starts import object_kind


@dataclass(frozen=True)
class Question:
    """One sentence about one scene.

    Attributes:
        scene: its number.
        text: the sentence.
        target: column of the instance that it means.
        alike: column of the other instance of that kind that is visible and not meant, -1 if there is none.
        expression: its description of the target.
        wrong: the same sentence with the name of another thing of the scene in the place of this one's.
        landmark: a sentence that means the thing that the relation refers to, None without one.
    """

    scene: int
    text: str
    target: int
    alike: int
    expression: Expression
    wrong: str
    landmark: str | None


def questions(scenes: Scenes, seed: int = 0, *, held_out_wordings: bool = True) -> list[Question]:
    """Every thing named alone, and every relation that distinguishes two alike things; one wording each, drawn.

    Args:
        scenes: scenes of the test split.
        seed: of the wordings.
        held_out_wordings: wordings that training never used, or those that it did.
    """
    rng = np.random.default_rng(seed)
    # A bare name can be one token, which nothing distinguishes from a sink.
    wordings = HELD_OUT_WORDINGS if held_out_wordings else [wording for wording in WORDINGS if wording != "{0}"]
    captioner, result = Captioner(scenes), []
    kinds = [object_kind(name) for name in scenes.instances]
    for index in range(len(scenes)):
        visible = scenes.pixels[index] >= VISIBLE
        unambiguous = []
        for expression in captioner.true_of(index):
            meant = expression.meant(scenes, np.array([index]))[0]
            if (meant != FALSE).sum() != 1 or meant.max() != TRUE:
                continue  # it means nothing here, or more than one thing
            target = int(meant.argmax())
            twins = [i for i, k in enumerate(kinds) if k == expression.target_kind and i != target and visible[i]]
            if expression.relation is None or twins:
                unambiguous.append((expression, target, twins[0] if twins else -1))
        for expression, target, alike in unambiguous:
            others = sorted({kinds[i] for i in np.flatnonzero(visible)} - {expression.target_kind})
            if not others:
                continue
            wrong = _one(rng, others, besides=expression.others)
            onto = _one(rng, others, besides=(wrong, *expression.others))
            landmark = expression.others[0] if expression.others else None
            drawn = int(rng.integers(2**31))  # the same draws, so that sentences differ in what they name alone

            def said(meant: Expression, drawn=drawn, onto=onto) -> str:
                return say(np.random.default_rng(drawn), meant, onto, wordings).text

            result.append(
                Question(
                    index,
                    said(expression),
                    target,
                    alike,
                    expression,
                    said(replace(expression, target_kind=wrong)),
                    said(Expression(landmark)) if landmark else None,
                )
            )
    return result


def _one(rng: np.random.Generator, among: Sequence[str], besides: Sequence[str]) -> str:
    """One of `among`, if possible none of those that the sentence names already."""
    fitting = [name for name in among if name not in besides] or among
    return fitting[int(rng.integers(len(fitting)))]
