"""A trained policy on disk: ``config.json`` says what it is, ``model.safetensors`` holds its weights.

Nothing is pickled and nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from la_reconvla.backbones.latents import Latents
from la_reconvla.backbones.paligemma import PACKAGED, PaliGemmaBackbone, SmallPaliGemma, weights_file, whiten_patches
from la_reconvla.backbones.pretrained import Freeze, Pretrained, hub_files
from la_reconvla.conditions import C1, Condition
from la_reconvla.contracts import PROPRIO_WIDTH, HeadConfig, Quality
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins, ActionHead
from la_reconvla.method.autoregressive import DECODINGS, DecodingName, TokenHead
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.denoiser import Denoiser
from la_reconvla.method.pixels import Pixels
from la_reconvla.method.policy import Policy
from la_reconvla.randomness import seeded
from la_reconvla.storage import atomic_write, claim, read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OWN_BACKBONE = "backbone"  # folder of a run that brings its backbone's weights along


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that is needed to rebuild a policy and to refuse data that it was not made for.

    Attributes:
        condition: id of the arm.
        blind: the policy acts on a grey image.
        seed: seed of weights, batches and masks.
        backbone: the backbone and what it is given.
        bins: action bins, from the training data's quantiles.
        head: the reconstructor's size, None without one.
        quality: how the training frames were rendered; evaluation must render alike.
        image_size: side of the rendered frames, before they are resized for the backbone.
        data_hash: hash of the demonstrations.
        train_starts: ids of the initial states that were trained on.
        saliency_state: shape of what the arm's saliency source learns from training frames, () for nothing.
        decoding: how actions come out, a key of `la_reconvla.method.autoregressive.DECODINGS`.
    """

    condition: str
    blind: bool
    seed: int
    backbone: SmallPaliGemma | Pretrained
    bins: ActionBins
    head: HeadConfig | None
    quality: Quality
    image_size: int
    data_hash: str
    train_starts: tuple[str, ...]
    saliency_state: tuple[int, ...] = ()
    decoding: DecodingName = "parallel"

    @classmethod
    def of(cls, condition: Condition, **fields: Any) -> PolicyConfig:
        """The configuration of `condition`'s policy."""
        head = condition.reconstruction.head if condition.reconstruction else None
        state = condition.saliency.state_shape if condition.saliency else ()
        return cls(condition=condition.id, blind=condition.blind, head=head, saliency_state=state, **fields)

    def build(self) -> Policy:
        """A policy with fresh weights, into which others can be loaded.

        Backbone and action head are drawn from one stream and the decoder from another, so that all arms of one seed
        start from equal weights, with or without a decoder.
        """
        with seeded(self.seed, "weights"):
            decoding = DECODINGS[self.decoding]
            backbone = decoding.given(self.backbone).build()
            head = decoding.head(backbone, self.bins, self.backbone.chunk)
            policy = Policy(backbone, self.bins, state_shape=self.saliency_state, head=head)
        if self.head is not None:
            with seeded(self.seed, "decoder"):
                inner = policy.backbone
                policy.reconstructor = self.head.build(inner.width, inner.grid, inner.patch_size)
        return policy

    def start(self, images: UInt8[torch.Tensor, "m 3 H W"] | None) -> Policy:
        """The policy that training starts from: pretrained weights where the backbone has some, else fresh ones.

        Args:
            images: training images that a random patch embedding is fitted to; None for a policy that sees none, and
                other stems than 'patch' ignore them.

        Raises:
            UserError: as `load_start`.
        """
        policy = self.build()
        if isinstance(self.backbone, SmallPaliGemma) and self.backbone.weights is not None:
            load_start(policy.backbone, self.backbone, policy.head)
            if isinstance(policy.head, TokenHead):
                policy.head.adopt(policy.backbone)
        elif images is not None and isinstance(policy.backbone, PaliGemmaBackbone) and policy.backbone.whitens:
            whiten_patches(policy.backbone, images)
        return policy

    def save(self, folder: Path) -> None:
        """Write ``config.json``, or check that the one that is there says the same.

        Raises:
            UserError: if the folder holds a run of another configuration.
        """
        claim(folder / CONFIG, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> PolicyConfig:
        """Read ``config.json``.

        Raises:
            UserError: if it is missing, damaged or of another version.
        """
        raw = read_json(folder / CONFIG)
        try:
            raw["backbone"] = _backbone(raw["backbone"], folder)
            low, high = raw["bins"].pop("low"), raw["bins"].pop("high")
            raw["bins"] = ActionBins(tuple(low), tuple(high), **raw["bins"])
            raw["head"] = _head(raw["head"]) if raw["head"] else None
            raw["train_starts"] = tuple(raw["train_starts"])
            raw["saliency_state"] = tuple(raw.get("saliency_state", ()))
            return cls(**raw)
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                f"{folder / CONFIG} is not the configuration of a policy of this version ({error}): train it again"
            ) from error


def _head(raw: dict[str, Any]) -> HeadConfig:
    """The configuration whose fields were saved."""
    if "target" not in raw:
        return MAEDecoder(**raw)
    target = raw["target"]
    return Denoiser(**{**raw, "target": Latents(**target) if "source" in target else Pixels(**target)})


def _backbone(raw: dict[str, Any], folder: Path) -> SmallPaliGemma | Pretrained:
    """The configuration whose fields were saved; a source below the run's own folder is found from anywhere."""
    if "source" not in raw:
        return SmallPaliGemma(**raw)
    if raw["source"] == OWN_BACKBONE:
        raw = {**raw, "source": str(folder / OWN_BACKBONE)}
    return Pretrained.from_dict(raw)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], **metadata: Any) -> None:
    """Atomic safetensors file; each value of `metadata` is stored as JSON."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(contiguous, temporary, metadata={key: json.dumps(value) for key, value in metadata.items()})


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: if the file is missing or damaged.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: train this run first, or finish it by the same command")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and train again") from error


def started_from(weights: str) -> SmallPaliGemma:
    """The backbone that a file of weights belongs to.

    Raises:
        UserError: if the file is missing or damaged, or is something else.
    """
    return pinned(dataclasses.replace(_start(weights)[1], weights=weights))


def pinned(config: SmallPaliGemma) -> SmallPaliGemma:
    """The same with the hash of its start weights, so that what is saved names the very weights that it began with.

    Raises:
        UserError: if there are none.
    """
    return dataclasses.replace(config, weights_hash=config.weights and file_hash(_start_file(config.weights)))


def start_bins(config: SmallPaliGemma | Pretrained, spread: float) -> ActionBins | None:
    """The bins of the actions that start weights were trained with; None for weights that never acted.

    An action head means something over its own bins only, so a training that starts from one keeps them.

    Raises:
        UserError: if the file of weights is missing or damaged.
    """
    return (bins := _start_facts(config)[0]) and dataclasses.replace(bins, spread=spread)


def start_demonstrations(config: SmallPaliGemma | Pretrained) -> dict[str, Any] | None:
    """What start weights say of the demonstrations that they learnt from; None for weights that never acted.

    ``hash``, ``quality``, ``image_size`` and ``episodes`` (a number) are of the last training, ``tasks`` (suite and
    index) and ``instructions`` of all before it too.

    Raises:
        UserError: if the file of weights is missing or damaged.
    """
    return _start_facts(config)[1]


def _start_facts(config: SmallPaliGemma | Pretrained) -> tuple[ActionBins | None, dict[str, Any] | None]:
    """Bins and demonstrations of start weights, checked."""
    if not isinstance(config, SmallPaliGemma) or config.weights is None:
        return None, None
    facts = load_tensors(path := _start_file(config.weights))[1]
    try:
        bins, said = facts.get("bins"), facts.get("demonstrations")
        if said is not None:
            said = {key: said[key] for key in ("hash", "episodes", "quality", "image_size", "tasks", "instructions")}
        return bins and ActionBins(tuple(bins["low"]), tuple(bins["high"])), said
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} was not written by la-reconvla pretrain of this version ({error})") from error


def load_start(backbone: Any, config: SmallPaliGemma, head: Any = None) -> None:
    """Put the weights that `config.weights` names into its backbone; what they do not hold stays random.

    Weights that have acted also bring the action queries, as many as a chunk has, and the parallel action head.

    Args:
        backbone: of this configuration.
        config: what it was built from.
        head: the action head of its policy, None where none is needed.

    Raises:
        UserError: if the file is missing or damaged, or is of a backbone of another size; what differs is named.
    """
    found = file_hash(_start_file(str(config.weights)))
    if config.weights_hash not in (None, found):
        raise UserError(
            f"the weights '{config.weights}' are not those that this began with ({found} instead of "
            f"{config.weights_hash}): restore them, or begin in another folder"
        )
    tensors, made_for = _start(str(config.weights))
    theirs = made_for.architecture
    if wrong := [f"{k} {theirs[k]}, not {v}" for k, v in config.architecture.items() if theirs[k] != v]:
        raise UserError(
            f"the weights '{config.weights}' are of another backbone ({', '.join(wrong)}): pretrain one of this size, "
            "or use --weights none"
        )
    queries = tensors.pop("queries", None)
    acting = {name: tensors.pop(name) for name in list(tensors) if name.startswith("head.")}
    own = {name: tensor for name, tensor in backbone.state_dict().items() if name.startswith("model.")}
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise UserError(
                f"the weights '{config.weights}' do not fit this version ({name} is unknown, missing or of another "
                "shape): pretrain again, or use --weights none"
            )
    backbone.load_state_dict(tensors, strict=False)  # queries for actions and robot state are not among them
    if isinstance(head, ActionHead) and acting and queries is not None:
        if config.chunk > len(queries):
            raise UserError(
                f"the weights '{config.weights}' act in chunks of {len(queries)} actions, {config.chunk} were asked "
                "for: take a shorter --chunk, or use --weights none"
            )
        with torch.no_grad():
            backbone.queries.copy_(queries[: config.chunk])
        head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in acting.items()})


def _start_file(weights: str) -> Path:
    path = weights_file(weights)
    if not path.is_file():
        raise UserError(f"there are no weights {path}: write them by la-reconvla pretrain, or use --weights none")
    return path


def _start(weights: str) -> tuple[dict[str, torch.Tensor], SmallPaliGemma]:
    path = _start_file(weights)
    tensors, facts = load_tensors(path)
    try:
        return tensors, SmallPaliGemma(**facts["backbone"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} was not written by la-reconvla pretrain of this version ({error})") from error


def kept(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that belong to the policy: all but the pretrained ones that stay as they are at their source."""
    frozen = {name for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    below = tuple(f"{name}." for name in frozen)  # constants of weights in 4 bits
    return {k: v for k, v in policy.state_dict().items() if k not in frozen and not (below and k.startswith(below))}


def restore(policy: Policy, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Put weights into a policy.

    Raises:
        UserError: if a tensor is missing, unknown or of another shape; each is named.
    """
    own = kept(policy)
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in own]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if wrong:
        raise UserError(
            f"{source} does not fit its config.json ({'; '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}): "
            "they come from different runs"
        )
    policy.load_state_dict(tensors, strict=False)  # all that is missing is frozen, see above


def unpacked(weights: str, folder: Path) -> Path:
    """Weights that have acted as a run of their own in `folder`: what they do before any study's training.

    Raises:
        UserError: if they never acted, or `folder` holds something else.
    """
    _, config = _start(weights)
    own = pinned(dataclasses.replace(config, weights=weights))
    bins, said = start_bins(own, ActionBins.spread), start_demonstrations(own)
    if bins is None or said is None:
        raise UserError(f"the weights '{weights}' know words and never acted: train from them with --weights {weights}")
    run = PolicyConfig.of(
        C1,
        seed=0,
        backbone=dataclasses.replace(own, weights=None, weights_hash=None),
        bins=bins,
        quality=said["quality"],
        image_size=said["image_size"],
        data_hash=said["hash"],
        train_starts=(),
    )
    run.save(folder)
    if not (folder / WEIGHTS).exists():
        policy = run.build()
        load_start(policy.backbone, own, policy.head)
        save_tensors(folder / WEIGHTS, dict(policy.state_dict()))
    return folder


def find_run(run: Path | str) -> Path:
    """The folder of a run; one on the hub, ``user/name``, is downloaded unless a folder is called so here.

    A name of weights that come with this package and have acted is unpacked into ``runs``, in a folder of its hash.

    Raises:
        UserError: if the hub has none, or cannot be reached.
    """
    if str(run) in PACKAGED and not Path(run).exists():
        return unpacked(str(run), Path("runs") / f"{run}-{file_hash(weights_file(str(run)))[:8]}")
    if Path(run).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(run)):
        return Path(run)
    return hub_files(str(run), None, None, give="")


def load_policy(run: Path | str) -> tuple[Policy, PolicyConfig]:
    """A trained policy, in evaluation mode, and its configuration.

    Args:
        run: folder of a run or of an exported one, or ``user/name`` on the hub.

    Raises:
        UserError: if it is no finished run.
    """
    folder = find_run(run)
    config = PolicyConfig.load(folder)
    policy = config.build()
    tensors, _ = load_tensors(folder / WEIGHTS)
    restore(policy, tensors, folder / WEIGHTS)
    return policy.eval(), config


def export_policy(run: Path, out: Path, merged: bool) -> PolicyConfig:
    """Copy what makes the policy: configuration and weights, with the backbone's on request.

    Args:
        run: folder of a finished run.
        out: folder to write to.
        merged: add adapters to the backbone's weights and write them too, as the library does; the folder then loads
            without the source.

    Raises:
        UserError: if the run is not finished, or `out` holds something else.
    """
    config = PolicyConfig.load(run)
    tensors, facts = load_tensors(run / WEIGHTS)
    if not merged:
        config.save(out)
        save_tensors(out / WEIGHTS, tensors, **facts)
        return config
    if not isinstance(config.backbone, Pretrained):
        raise UserError(f"{run} has no pretrained backbone, all its weights are its own: leave --merged out")
    policy = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, quantize=None)).build()
    restore(policy, tensors, run / WEIGHTS)
    backbone: Any = policy.backbone
    backbone.merge()
    backbone.save(out / OWN_BACKBONE)
    alone = dataclasses.replace(
        config.backbone,
        source=str(out / OWN_BACKBONE),
        revision=None,
        freeze=Freeze(last=0),
        lora=None,
        quantize=None,
    ).pinned()
    config = dataclasses.replace(config, backbone=dataclasses.replace(alone, source=OWN_BACKBONE))
    config.save(out)
    own = {name: tensor for name, tensor in kept(policy).items() if not name.startswith("backbone.inner.model.")}
    save_tensors(out / WEIGHTS, own, **facts)
    return config


def weights_hash(policy: torch.nn.Module, part: str) -> str:
    """SHA-256 over names and bytes of what `kept` gives below `part`, in order."""
    digest = hashlib.sha256()
    for name, tensor in kept(policy).items():
        if name.startswith(f"{part}."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        UserError: if it does not exist.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: train this run first, or finish it by the same command")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@torch.no_grad()
def dry_run(policy: Policy, instructions: Iterable[str]) -> None:
    """Act once on every instruction, so that one that is too long is found before long work.

    Raises:
        UserError: from the backbone.
    """
    backbone: Any = policy.backbone
    told = sorted(set(instructions))
    rows, columns = backbone.grid
    images = torch.zeros(len(told), 3, rows * backbone.patch_size, columns * backbone.patch_size, dtype=torch.uint8)
    device = next(policy.parameters()).device
    wrist = images if backbone.config.wrist else None
    width = PROPRIO_WIDTH[backbone.config.proprio]
    proprio = torch.zeros(len(told), width, device=device) if width else None
    training = policy.training
    policy.eval()  # checkpointing, which only training does, and a cache of keys exclude each other
    policy.act(images.to(device), told, None if wrist is None else wrist.to(device), proprio)
    policy.train(training)
