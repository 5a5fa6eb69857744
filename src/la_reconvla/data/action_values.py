"""What the actions of others' datasets are, by their values; two other values than -1 and 1 become those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32

from la_reconvla.errors import UserError
from la_reconvla.robot import ActionKind, ActionSpace


def space_of(
    where: str, names: Sequence[str], kinds: Sequence[ActionKind], actions: Float[np.ndarray, "N a"]
) -> tuple[ActionSpace, dict[int, np.ndarray]]:
    """What the actions are.

    Args:
        where: the file that may say the kinds, for messages.
        names: of the dimensions.
        kinds: of them; where there are none, a dimension of two values is binary.
        actions: all of them.

    Returns:
        The space; and by their places the two values, in order, of binary dimensions that have others than -1 and 1.

    Raises:
        UserError: kinds do not fit, or a binary dimension has not two values.
    """
    values = [np.unique(column) for column in actions.T]
    try:
        space = ActionSpace(
            tuple(names), tuple(kinds or ("binary" if len(found) == 2 else "continuous" for found in values))
        )
        if len(space) != len(values):
            raise UserError(f"{len(values)} numbers are no {space}")
    except UserError as error:
        raise UserError(f"{where}: {error}; mend action_kinds there") from None
    others = {place: values[place] for place in space.binary if not set(values[place]) <= {-1, 1}}
    for place, found in others.items():
        if len(found) != 2:
            raise UserError(
                f"{where}: the binary action '{space.names[place]}' has {len(found)} values, not two: write continuous "
                "there"
            )
    return space, others


def two_valued(
    every: Sequence[Float32[np.ndarray, "T a"]], others: Mapping[int, np.ndarray]
) -> list[Float32[np.ndarray, "T a"]]:
    """The actions of all episodes, with -1 for the smaller of the two values that `others` has of a place, and 1."""
    changed = [actions.copy() for actions in every]
    for place, (_, greater) in others.items():
        for actions in changed:
            actions[:, place] = np.where(actions[:, place] == greater, 1, -1)
    return changed
