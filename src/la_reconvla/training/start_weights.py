"""The weights that a small backbone's training starts from: what ``la-reconvla pretrain`` wrote, as one value.

Weights that only know words hold the backbone's model, without queries. Weights that have acted also hold the action
queries and the action head, the bins that this head means, and the demonstrations that they learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from la_reconvla import kinds
from la_reconvla.backbones.packaged import weights_file
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.shared import BackboneConfig
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins, ActionHead
from la_reconvla.method.variants.action_diffusion import DenoisingHead
from la_reconvla.method.variants.autoregressive import DECODINGS, OUTER, DecodingName
from la_reconvla.robot import ActionSpace
from la_reconvla.training.tensors import file_hash, load_tensors, named_as

T = TypeVar("T")
# In the file: the action queries, and the prefix of the action head's tensors.
QUERIES, HEAD = "queries", "action_head."
DEMONSTRATIONS = ("hash", "episodes", "quality", "image_size", "tasks", "instructions")


@dataclass(frozen=True, eq=False)
class StartWeights:
    """A file of weights, read once and checked.

    Attributes:
        name: a name in `la_reconvla.backbones.packaged.PACKAGED`, or a path.
        hash: of the file.
        backbone: the backbone that they were made for, as their training had it: it starts from random weights.
        tensors: by name; ``model.`` of the backbone, ``queries`` and ``action_head.`` of what has acted.
        bins: the bins of the actions that they were trained with; None for weights that never acted.
        demonstrations: what they learnt to act from, None for weights that never acted. ``hash``, ``quality``,
            ``image_size`` and ``episodes`` (a number) are of the last training, ``tasks`` (suite and index) and
            ``instructions`` of all before it too.
    """

    name: str
    hash: str
    backbone: SmallPaliGemma
    tensors: Mapping[str, torch.Tensor]
    bins: ActionBins | None
    demonstrations: Mapping[str, Any] | None

    @classmethod
    def read(cls, name: str) -> StartWeights:
        """Read a file.

        Raises:
            UserError: if it is missing or damaged, or is something else.
        """
        path = _file(name)
        tensors, metadata = load_tensors(path)
        try:
            backbone = _value(metadata["backbone"], SmallPaliGemma)
            bins, shown = metadata.get("bins"), metadata.get("demonstrations")
            return cls(
                name,
                file_hash(path),
                backbone,
                tensors,
                bins and _value(bins, ActionBins),
                shown and {key: shown[key] for key in DEMONSTRATIONS},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} was not written by la-reconvla pretrain of this version ({error})") from error

    @classmethod
    def of(cls, config: BackboneConfig) -> StartWeights | None:
        """The start weights that a backbone's configuration names; None for a pretrained one or random ones.

        Raises:
            UserError: as `read`, or if they are not those that the configuration was pinned to, see `pinned`.
        """
        if not isinstance(config, SmallPaliGemma) or config.weights is None:
            return None
        start = cls.read(config.weights)
        if config.weights_hash not in (None, start.hash):
            raise UserError(
                f"the weights '{start.name}' are not those that this began with ({start.hash} instead of "
                f"{config.weights_hash}): restore them, or begin in another folder"
            )
        return start

    @property
    def config(self) -> SmallPaliGemma:
        """The backbone that they were made for, which starts from them, pinned."""
        return replace(self.backbone, weights=self.name, weights_hash=self.hash)

    def load_into(self, backbone: Any, action_head: Any = None) -> None:
        """Put the weights into a backbone; what they do not hold stays as it is.

        Weights that have acted also bring the action queries, as many as a chunk has, and the parallel action head.
        A head that denoises gets the queries and stays as it is.

        Args:
            backbone: of the size that they were made for.
            action_head: of its policy, None where none is needed.

        Raises:
            UserError: if the backbone is of another size; what differs is named.
        """
        config: SmallPaliGemma = backbone.config
        made_for = self.backbone.architecture
        if wrong := [f"{k} {made_for[k]}, not {v}" for k, v in config.architecture.items() if made_for[k] != v]:
            raise UserError(
                f"the weights '{self.name}' are of another backbone ({', '.join(wrong)}): pretrain one of this size, "
                "or use --weights none"
            )
        fresh = {name: tensor for name, tensor in backbone.state_dict().items() if name.startswith("model.")}
        model = {k: v for k, v in self.tensors.items() if k != QUERIES and not k.startswith(HEAD)}
        model = named_as(model, fresh)
        for name in sorted(fresh.keys() | model.keys()):
            if name not in fresh or name not in model or fresh[name].shape != model[name].shape:
                raise UserError(
                    f"the weights '{self.name}' do not fit this version ({name} is unknown, missing or of another "
                    "shape): pretrain again, or use --weights none"
                )
        backbone.load_state_dict(model, strict=False)  # queries for actions and robot state are not among them
        head = {name.removeprefix(HEAD): tensor for name, tensor in self.tensors.items() if name.startswith(HEAD)}
        queries = self.tensors.get(QUERIES)
        if isinstance(action_head, ActionHead | DenoisingHead) and head and queries is not None:
            if config.chunk > len(queries):
                raise UserError(
                    f"the weights '{self.name}' act in chunks of {len(queries)} actions, {config.chunk} were asked "
                    "for: take a shorter --chunk, or use --weights none"
                )
            with torch.no_grad():
                backbone.queries.copy_(queries[: config.chunk])
            if isinstance(action_head, ActionHead):
                action_head.load_state_dict(head)


def pinned(config: SmallPaliGemma) -> SmallPaliGemma:
    """The same with the hash of its start weights, so that what is saved names the very weights that it began with.

    Raises:
        UserError: if there are none.
    """
    return replace(config, weights_hash=config.weights and file_hash(_file(config.weights)))


def bins_of(
    start: StartWeights | None,
    samples: Samples,
    spread: float = ActionBins.spread,
    decoding: DecodingName = "parallel",
) -> ActionBins:
    """The bins to train with: those of the start weights' actions if the samples' are of their kind, else between
    quantiles of the samples' actions.

    An action head means something over the bins that it was trained with only, so a training that starts from one keeps
    them. A decoding with another `reach` starts from no head.

    Args:
        start: what training starts from.
        samples: training samples.
        spread: standard deviation of the soft labels, in bins.
        decoding: whose `reach` the quantiles are.
    """
    space, reach = samples.demonstrations.space, DECODINGS[decoding].reach
    if start is not None and start.bins is not None and start.bins.space == space and reach == OUTER:
        return replace(start.bins, spread=spread)
    return ActionBins.from_quantiles(*samples.quantiles(*reach), space, spread=spread)


def _value(raw: Mapping[str, Any], kind: type[T]) -> T:
    """What a file holds; the packaged ones are older than the names of classes in files."""
    return kinds.from_json(kinds.named(raw, kind), (kind, ActionSpace))


def _file(name: str) -> Path:
    path = weights_file(name)
    if not path.is_file():
        raise UserError(f"there are no weights {path}: write them by la-reconvla pretrain, or use --weights none")
    return path
