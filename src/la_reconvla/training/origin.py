"""A training that starts from the weights of another run: what fits is taken, and what that run has seen is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.backbones.shared import BackboneConfig
from la_reconvla.errors import UserError

SHOWN = 4  # names that the line lists for each reason


@dataclass(frozen=True)
class Origin:
    """The run whose weights another run started from.

    Attributes:
        run: its folder, or its name on the hub.
        weights_hash: of its weights.
        starts: ids of the initial states that it was trained on, and of those that its own origin was; () if unknown.
    """

    run: str
    weights_hash: str
    starts: tuple[str, ...]


def require_same_frozen(run: str, theirs: BackboneConfig, ours: BackboneConfig) -> None:
    """Refuse adapters and heads of a run that were trained over other frozen weights.

    Args:
        run: whose they are.
        theirs: what its backbone was made from.
        ours: the same of the policy that starts from it.

    Raises:
        UserError: both are pretrained, some of their weights stay as they are, and source or revision differ.
    """
    if not isinstance(theirs, Pretrained) or not isinstance(ours, Pretrained):
        return
    equal = theirs.revision == ours.revision and (
        theirs.source == ours.source or str(ours.revision).startswith("sha256:")  # of a folder, wherever it lies
    )
    if (theirs.leaves_some or ours.leaves_some) and not equal:
        raise UserError(
            f"{run} was trained over weights of {theirs.source} ({theirs.revision}) that stay as they are, and here "
            f"they would be those of {ours.source} ({ours.revision}): train with --backbone {theirs.source}, or begin "
            "without --init-from"
        )


@torch.no_grad()
def take(run: str, tensors: Mapping[str, Tensor], into: Mapping[str, Tensor], same_actions: bool) -> str:
    """Copy the weights that fit by name and shape, where they lie.

    Args:
        run: whose weights they are.
        tensors: the weights.
        into: those of the policy that starts from them.
        same_actions: whether its action space is that of the run; else its action head stays as it is.

    Returns:
        How many were taken, and which were not and why, in one line.

    Raises:
        UserError: if none of the backbone's fits.
    """
    taken, left = 0, {}
    for name in dict.fromkeys((*tensors, *into)):
        if name not in into:
            why = f"only in {run}"
        elif name not in tensors:
            why = "only here"
        elif name.startswith("action_head.") and not same_actions:
            why = "for other actions"
        elif tensors[name].shape != into[name].shape:
            why = "of another shape"
        else:
            into[name].copy_(tensors[name])
            taken += 1
            continue
        left.setdefault(why, []).append(name)
    parts = {name for name in into if name.startswith("backbone.")}
    if not parts.difference(*left.values()):
        raise UserError(
            f"no weight of the backbone of {run} fits: train with the --preset and --backbone that it was trained with"
        )
    rest = [f"{why}: {_listed(names)}" for why, names in left.items()]
    return f"{taken} of the {len(tensors)} tensors of {run} are the start" + "".join(f"; {one}" for one in rest)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
