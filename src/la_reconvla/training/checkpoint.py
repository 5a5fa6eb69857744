"""A trained policy on disk: ``config.json`` describes it, ``model.safetensors`` holds its weights."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8

from la_reconvla import kinds, layout
from la_reconvla.backbones.latents import Latents
from la_reconvla.backbones.packaged import PACKAGED, weights_file
from la_reconvla.backbones.paligemma import PaliGemmaBackbone, SmallPaliGemma, whiten_patches
from la_reconvla.backbones.pretrained import Freeze, Lora, Pretrained, hub_files
from la_reconvla.backbones.shared import BackboneConfig
from la_reconvla.conditions import C1, Condition
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.policy import Policy
from la_reconvla.method.reconstruction import ReconstructorConfig
from la_reconvla.method.variants.autoregressive import DECODINGS, DecodingName, TokenHead
from la_reconvla.method.variants.budget import Budget, BudgetedPolicy
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.learned import unlearned
from la_reconvla.method.variants.targets import Pixels
from la_reconvla.randomness import seeded
from la_reconvla.robot import LIBERO_INPUTS, ActionSpace, Inputs, Quality, Standard
from la_reconvla.storage import claim, read_json
from la_reconvla.text_table import say
from la_reconvla.training.origin import Origin, require_same_frozen, take
from la_reconvla.training.run_folders import CONFIG, MERGED_BACKBONE, RUN_FILES, WEIGHTS, folder_here, missing
from la_reconvla.training.run_state import recorded_only
from la_reconvla.training.start_weights import StartWeights
from la_reconvla.training.tensors import file_hash, flat_name, load_tensors, named_as, save_tensors

SCHEMA = 2  # of config.json; 2 names the class of every value, and 1 did not
SAVED = (
    *(ActionBins, ActionSpace, Inputs, Standard, Origin),
    *(SmallPaliGemma, Pretrained, Freeze, Lora, MAEDecoder, Denoiser, Pixels, Latents, Budget),
)
"""This package's own classes that a configuration is made of; others are registered, `la_reconvla.kinds.register`."""


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that is needed to rebuild a policy and to refuse data that it was not made for.

    Attributes:
        condition: id of the arm.
        blind: the policy acts on a grey image.
        seed: seed of weights, batches and masks.
        backbone: the backbone and what it is given; one of yours is registered, see `la_reconvla.kinds.register`.
        bins: action bins, from the training data's quantiles.
        reconstruction_head: kind and size of the reconstruction head, None without one.
        quality: how the training frames were rendered; evaluation must render alike.
        image_size: side of the rendered frames, before they are resized for the backbone.
        data_hash: hash of the demonstrations.
        train_starts: ids of the initial states that were trained on.
        saliency_state_shape: shape of what the arm's saliency source learns from training frames, () for nothing.
        decoding: how actions come out, a key of `la_reconvla.method.variants.autoregressive.DECODINGS`.
        inputs: what it is given of the robot's data, and how that is prepared.
        origin: the run whose weights its training started from.
        budget: how much of the picture it sees; None for all of it.
    """

    condition: str
    blind: bool
    seed: int
    backbone: BackboneConfig
    bins: ActionBins
    reconstruction_head: ReconstructorConfig | None
    quality: Quality
    image_size: int
    data_hash: str
    train_starts: tuple[str, ...]
    saliency_state_shape: tuple[int, ...] = ()
    decoding: DecodingName = "parallel"
    inputs: Inputs = LIBERO_INPUTS
    origin: Origin | None = None
    budget: Budget | None = None

    @property
    def seen(self) -> tuple[str, ...]:
        """Ids of the initial states that it or its origin was trained on."""
        return (*self.train_starts, *(self.origin.starts if self.origin else ()))

    @classmethod
    def of(cls, condition: Condition, **fields: Any) -> PolicyConfig:
        """The configuration of `condition`'s policy."""
        head = condition.reconstruction.reconstruction_head if condition.reconstruction else None
        shape = condition.learned_saliency.state_shape if condition.learned_saliency else ()
        return cls(
            condition=condition.id,
            blind=condition.blind,
            reconstruction_head=head,
            saliency_state_shape=shape,
            budget=condition.budget,
            **fields,
        )

    @classmethod
    def trained_on(
        cls, condition: Condition, samples: Samples, *, bins: ActionBins | None = None, **fields: Any
    ) -> PolicyConfig:
        """`of`, with the metadata of the demonstrations of `samples`; `bins` from their quantiles if None."""
        shown, reach = samples.demonstrations, DECODINGS[fields.get("decoding", "parallel")].reach
        return cls.of(
            condition,
            bins=bins or ActionBins.from_quantiles(*samples.quantiles(*reach), shown.space),
            quality=shown.quality,
            image_size=shown.image_size,
            data_hash=shown.hash,
            train_starts=shown.starts,
            inputs=samples.inputs,
            **fields,
        )

    def build(self) -> Policy:
        """A policy with fresh weights, into which others can be loaded.

        Backbone and action head are drawn from one stream, decoder and gate from others, so that all arms of one seed
        start from equal weights, with or without those.

        Raises:
            UserError: if the backbone cannot decode in this way, or a budget cannot be kept so.
        """
        with seeded(self.seed, "weights"):
            decoding = DECODINGS[self.decoding]
            backbone = decoding.given(self.backbone).build()
            action_head = decoding.action_head(backbone, self.bins, self.backbone.chunk)
            state = unlearned(self.saliency_state_shape)
            policy = Policy(backbone, self.bins, saliency_state=state, action_head=action_head)
        if self.reconstruction_head is not None:
            with seeded(self.seed, "decoder"):
                inner = policy.backbone
                policy.reconstruction_head = self.reconstruction_head.build(inner.width, inner.grid, inner.patch_size)
        if self.budget is not None:
            self.budget.require(self.decoding)
            with seeded(self.seed, "gate"):
                policy = BudgetedPolicy(policy, self.budget)
        return policy

    def start(self, images: UInt8[torch.Tensor, "m 3 H W"] | None) -> Policy:
        """The policy that training starts from: pretrained weights where the backbone has some, else fresh ones.

        Args:
            images: training images that a random patch embedding is fitted to; None for a policy that sees none, and
                other stems than 'patch' ignore them.

        Raises:
            UserError: as those of `StartWeights` and `la_reconvla.training.origin`; the origin has other weights now.
        """
        if (before := self.origin) is not None:
            require_same_frozen(before.run, PolicyConfig.load(find_run(before.run)).backbone, self.backbone)
        policy = self.build()
        if (start := StartWeights.of(self.backbone)) is not None:
            acts = start.bins is not None and start.bins.space == self.bins.space
            start.load_into(policy.backbone, policy.action_head if acts else None)  # else fresh: other actions
            if isinstance(policy.action_head, TokenHead):
                policy.action_head.adopt(policy.backbone)
        elif images is not None and isinstance(policy.backbone, PaliGemmaBackbone) and policy.backbone.whitens:
            whiten_patches(policy.backbone, images)
        if before is not None:
            self._start_from(before, policy)
        return policy

    def _start_from(self, origin: Origin, policy: Policy) -> None:
        """Put what fits of the origin's weights into a policy, and say what does not."""
        if origin_of(origin.run).weights_hash != origin.weights_hash:
            raise UserError(f"the weights of {origin.run} have changed: restore them, or begin in another folder")
        folder, own = find_run(origin.run), kept(policy)
        tensors = named_as(load_tensors(folder / WEIGHTS)[0], own)
        same = PolicyConfig.load(folder).bins.space == self.bins.space
        say(take(origin.run, tensors, own, same))

    def save(self, folder: Path) -> None:
        """Write ``config.json``, or check that the one there is equal.

        Raises:
            UserError: if the folder holds a run of another configuration, or of another version; if it could not be
                read again, because one of its classes is not registered or lacks what its protocol names.
            TypeError: the same for a class of this package that `SAVED` lacks.
        """
        self._require_parts()
        values = kinds.to_json(self)
        try:
            kinds.from_json(json.loads(json.dumps(values)), (type(self), *SAVED))
        except ValueError as error:
            raise TypeError(f"{error}: add the class to la_reconvla.training.checkpoint.SAVED") from error
        if (path := folder / CONFIG).exists():
            _require_schema(path)
        claim(path, {"schema": SCHEMA, **values}, functools.partial(kinds.with_defaults, value=self))

    @classmethod
    def load(cls, folder: Path) -> PolicyConfig:
        """Read ``config.json``.

        Raises:
            UserError: if it is missing, damaged or of another version, or names a class that is not registered.
        """
        config = cls.from_json(_require_schema(path := folder / CONFIG), str(path))
        if isinstance(config.backbone, Pretrained) and config.backbone.source == MERGED_BACKBONE:
            backbone = dataclasses.replace(config.backbone, source=str(folder / MERGED_BACKBONE))  # from any directory
            return dataclasses.replace(config, backbone=backbone)
        return config

    @classmethod
    def from_json(cls, raw: Any, where: str) -> PolicyConfig:
        """What `la_reconvla.kinds.to_json` was given; `where` names it in the `UserError` if it was none such."""
        try:
            config = kinds.from_json(raw, (cls, *SAVED))
            cls._require_parts(config)  # of whatever class it is
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} describes no policy of this version ({error}): train it again") from error
        return config

    def _require_parts(self) -> None:
        """Raise a `TypeError` for a part of another class, a `UserError` for one that lacks what its protocol names."""
        classes = {
            "bins": ActionBins,
            "inputs": Inputs,
            "train_starts": tuple,
            "origin": Origin | None,
            "budget": Budget | None,
        }
        for name, kind in classes.items():
            if not isinstance(part := getattr(self, name, None), kind):
                raise TypeError(f"{name} is {part!r}")
        for part, protocol in ((self.backbone, BackboneConfig), (self.reconstruction_head, ReconstructorConfig)):
            names = [name for name in vars(protocol) if not name.startswith("_")]
            # looked up, not asked: a pretrained backbone reads its files to say its image size
            lacks = [name for name in names if inspect.getattr_static(part, name, part) is part]
            if lacks and (part is not None or protocol is BackboneConfig):
                raise UserError(
                    f"{kinds.name_of(type(part))} lacks {', '.join(lacks)}: give it what "
                    f"{protocol.__module__}.{protocol.__name__} names"
                )


def _require_schema(path: Path) -> dict[str, Any]:
    """The content of a ``config.json``, without its schema number."""
    raw = read_json(path)
    if isinstance(raw, dict) and "schema" not in raw and "type" in raw:
        raise UserError(
            f"{path.parent} is a policy that LeRobot saved: evaluate it as lerobot:{path.parent}, or make a run of one "
            "of ours with `la-reconvla share from-lerobot`"
        )
    schema = raw.pop("schema", 1) if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{path} is no run of this version (its schema is {schema}, not {SCHEMA}): read it with the version that "
            "wrote it, or delete it and train again"
        )
    return raw


def kept(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that belong to the policy: all but the pretrained ones that stay as they are at their source."""
    if isinstance(getattr(getattr(policy, "backbone", None), "config", None), SmallPaliGemma):
        return policy.state_dict()  # small enough to keep what is frozen, too
    frozen = {name for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    below = tuple(f"{name}." for name in frozen)  # constants of weights in 4 bits
    return {k: v for k, v in policy.state_dict().items() if k not in frozen and not (below and k.startswith(below))}


def restore(policy: Policy, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Put weights into a policy.

    Raises:
        UserError: if a tensor is missing, unknown or of another shape; each is named.
    """
    expected = kept(policy)
    tensors = named_as(tensors, expected)
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if wrong:
        raise UserError(
            f"{source} does not fit its config.json ({'; '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}): "
            "they come from different runs"
        )
    policy.load_state_dict(tensors, strict=False)  # all that is missing is frozen, see above


def unpacked(weights: str, folder: Path) -> Path:
    """Weights that have acted as a run in `folder`: what they do before any study's training.

    Raises:
        UserError: if they never acted, or `folder` holds something else.
    """
    start = StartWeights.read(weights)
    if start.bins is None or start.demonstrations is None:
        raise UserError(
            f"the weights '{weights}' have read captions but never acted: train from them with --weights {weights}"
        )
    run = PolicyConfig.of(
        C1,
        seed=0,
        backbone=dataclasses.replace(start.backbone, weights=None, weights_hash=None),
        bins=start.bins,
        quality=start.demonstrations["quality"],
        image_size=start.demonstrations["image_size"],
        data_hash=start.demonstrations["hash"],
        train_starts=(),
    )
    run.save(folder)
    if not (folder / WEIGHTS).exists():
        policy = run.build()
        start.load_into(policy.backbone, policy.action_head)
        save_tensors(folder / WEIGHTS, dict(policy.state_dict()))
    return folder


def find_run(run: Path | str) -> Path:
    """The folder of a run; one on the hub, ``user/name``, is downloaded unless a folder is called so here.

    A name of weights that come with this package and have acted is unpacked into ``runs``, in a folder of its hash.

    Raises:
        UserError: if it is a folder that is not there or holds a whole study, or the hub has none or cannot be reached.
    """
    folder = folder_here(run)
    if folder is not None:
        return folder
    if str(run) in PACKAGED:
        return unpacked(str(run), layout.RUNS / f"{run}-{file_hash(weights_file(str(run)))[:8]}")
    try:
        return hub_files(str(run), None, RUN_FILES, give="")
    except UserError as error:
        raise UserError(f"{missing(run)}, and from the hub: {error}") from error


def load_policy(run: Path | str) -> tuple[Policy, PolicyConfig]:
    """A trained policy, in evaluation mode, and its configuration.

    Args:
        run: folder of a run or of an exported one, or ``user/name`` on the hub.

    Raises:
        UserError: if it is no finished run.
    """
    folder = find_run(run)
    config = PolicyConfig.load(folder)
    if recorded_only(folder):
        raise UserError(f"{folder} came from records, without its weights: delete it, and its study trains it again")
    tensors, _ = load_tensors(folder / WEIGHTS)
    policy = _rebuilt(config, folder / CONFIG)
    restore(policy, tensors, folder / WEIGHTS)
    return policy.eval(), config


def origin_of(run: str) -> Origin:
    """A finished run as what another starts from; errors as `find_run`, and if it is not finished."""
    folder = find_run(run)
    return Origin(run, file_hash(folder / WEIGHTS), tuple(dict.fromkeys(PolicyConfig.load(folder).seen)))


def _rebuilt(config: PolicyConfig, path: Path) -> Policy:
    """The policy that a file describes.

    Raises:
        UserError: there is none such: a number in it is of another kind, or so large that no memory holds the policy.
    """
    try:
        return config.build()
    except UserError:
        raise
    except Exception as error:  # torch and transformers have classes of their own for a number that cannot be
        raise UserError(
            f"{path} describes no policy that can be built ({type(error).__name__}: {error}): restore or train it again"
        ) from error


def weights_hash(policy: torch.nn.Module, part: str) -> str:
    """SHA-256 over names and bytes of what `kept` gives below `part`, in order."""
    digest = hashlib.sha256()
    for name, tensor in kept(policy).items():
        if name.startswith(f"{part}."):
            digest.update(flat_name(name).encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
