"""Other words for a demonstration that are as true: hindsight instructions.

A task has one of many true sentences. A policy trained on a dozen sentences learns a lookup table of places to go
to, and a thirteenth means nothing to it. So some demonstrations are told another sentence, which by the geometry of
`la_reconvla.data.captions` holds of their target and of nothing else there; held-out pairs are left out. DIAL (arXiv
2211.11736) does this with a captioning model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from la_reconvla.data.captions import (
    FALSE,
    NOUNS,
    REQUESTS,
    TRUE,
    VISIBLE,
    Expression,
    Relation,
    draw,
    expressions,
    say,
)
from la_reconvla.data.scenes import Scenes
from la_reconvla.data.starts import object_kind

SAID = (
    *REQUESTS,
    "pick up the {0} and place it on the {1}",  # LIBERO's own, which demonstrations have anyway
)


class Relabeller:
    """Draws sentences for the targets of some scenes; those that hold of a target alone are known once.

    Args:
        instances: o names of the objects in any of the scenes.
        positions: float [m o 2], x and y in the world (m), NaN for what is not in a scene.
        targets: the instance that is moved in each scene.
        destinations: where it is put; a sentence is drawn only where this has a name.
    """

    def __init__(
        self,
        instances: Sequence[str],
        positions: Float[np.ndarray, "m o 2"],
        targets: Sequence[str],
        destinations: Sequence[str],
    ):
        count, kinds = len(targets), [object_kind(name) for name in instances]
        pixels = np.where(np.isnan(positions[:, :, 0]), 0, VISIBLE).astype(np.int32)
        blank = np.zeros((count, 1, 1, 3), np.uint8)
        scenes = Scenes(("",) * count, tuple(instances), blank, blank[..., 0], positions, pixels)
        everywhere = np.arange(count)
        named = {name: next((k for k in NOUNS if name.startswith(f"{k}_")), None) for name in set(destinations)}
        self._onto = [named[name] for name in destinations]  # a region bears its owner's name
        self._true: list[dict[Relation | None, list[Expression]]] = [{} for _ in targets]
        rows = {index: instances.index(name) for index, name in enumerate(targets) if name in instances}
        wanted = {kinds[column] for column in rows.values()}
        for expression in expressions([name for name in kinds if name in NOUNS]):
            if expression.target_kind not in wanted or expression.held_out:
                continue
            meant = expression.meant(scenes, everywhere)
            for index, column in rows.items():
                if meant[index, column] == TRUE and (np.delete(meant[index], column) == FALSE).all():
                    self._true[index].setdefault(expression.relation, []).append(expression)

    def true_of(self, index: int) -> list[Expression]:
        """All that holds of the target of scene `index` and of nothing else in it."""
        return [expression for group in self._true[index].values() for expression in group]

    def sentence(self, rng: np.random.Generator, index: int) -> str | None:
        """A request for the target of scene `index`, its relation by the shares of `RELATIONS`; None if there is none.

        Where it is alone of its kind, it is named without a relation as often as a caption does that.
        """
        groups, onto = self._true[index], self._onto[index]
        if not groups or onto is None:
            return None
        return say(rng, draw(rng, groups), onto, SAID).text
