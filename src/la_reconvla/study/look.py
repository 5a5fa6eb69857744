"""Where one instruction looks in one picture: the map that an attention mask would be made of, for people.

Works on any backbone that `la_reconvla.backbones.families` knows and on the runs of this package.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from la_reconvla import drawing
from la_reconvla.analysis.attention_overlap import instruction_difference
from la_reconvla.backbones.families import Opened
from la_reconvla.backbones.shared import BackboneConfig
from la_reconvla.conditions import Condition, find_condition
from la_reconvla.contracts import Batch, Channel, Features, PolicyInput
from la_reconvla.data.image_files import read_picture
from la_reconvla.data.samples import resize
from la_reconvla.errors import UserError
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import saliency
from la_reconvla.method.variants.attention_heads import per_head
from la_reconvla.robot import Fit, proprio_width
from la_reconvla.storage import read_json, write_content
from la_reconvla.study.pictures import draw
from la_reconvla.training.checkpoint import CONFIG, load_policy
from la_reconvla.training.devices import pick_device

TOP = 5


@dataclass(frozen=True, eq=False)
class Look:
    """One instruction's map.

    Attributes:
        saliency: [n], see `la_reconvla.method.saliency.saliency`.
        heads: [l h n], the same before layers and heads are averaged.
        layers: numbers of those layers.
        grid: rows and columns.
        channel: whose attention it is.
    """

    saliency: Float[np.ndarray, " n"]
    heads: Float[np.ndarray, "l h n"]
    layers: tuple[int, ...]
    grid: tuple[int, int]
    channel: Channel

    def lines(self) -> list[str]:
        """Its numbers in words."""
        order = np.argsort(-self.saliency)[:TOP]
        rows, columns = np.unravel_index(order, self.grid)
        top = ", ".join(f"({r}, {c}) {self.saliency[i]:.4f}" for i, r, c in zip(order, rows, columns, strict=True))
        return [
            f"channel: {drawing.readable(self.channel)}",
            f"layers {', '.join(map(str, self.layers))}, {self.heads.shape[1]} heads, "
            f"{self.grid[0]} x {self.grid[1]} patches",
            f"share of the attention that falls on the image: {self.saliency.sum():.3f}",
            f"top patches (row, column): {top}; even would be {self.saliency.mean():.4f}",
        ]


def open_backbone(source: str, layers: int | None) -> tuple[Any, BackboneConfig, Fit, tuple[Policy, Condition] | None]:
    """The backbone of a run, of a model in a folder, or of an id on the hub; what it was made from; and the policy.

    Third is what becomes of pictures that are not square: as the run was trained, and models' are squeezed.
    The policy comes with its arm, from a run with a decoder that reconstructs what attention picks; else it is None.

    Raises:
        UserError: if there is none, `layers` is given for a run, which was trained with certain layers, or a run sees
            a budget of patches only.
    """
    folder = Path(source)
    if (folder / CONFIG).exists() and "condition" in read_json(folder / CONFIG):
        if layers is not None:
            raise UserError("a run uses the layers that it was trained with: leave --layers out")
        policy, run = load_policy(folder)
        if run.budget is not None:
            raise UserError(
                f"{source} sees only a budget of patches, and this command would show what it sees without: its map is "
                "among the pictures of its study's report"
            )
        arm = find_condition(run.condition)
        if arm is None or arm.saliency is None or policy.reconstruction_head is None:
            return policy.backbone, run.backbone, run.inputs.fit, None
        return policy.backbone, run.backbone, run.inputs.fit, (policy, arm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library thinks of a configuration helps nobody here
        opened = Opened(source) if layers is None else Opened(source, saliency_layers=layers)
        return opened.build(), opened, "squeeze", None


def _inputs(backbone: Any, given: BackboneConfig, image: UInt8[np.ndarray, "H W 3"], instruction: str) -> PolicyInput:
    device = next(backbone.parameters()).device
    picture = torch.from_numpy(image.transpose(2, 0, 1)[None].copy()).to(device)
    width = proprio_width(given.proprio)
    return PolicyInput(
        picture,
        [instruction],
        wrist=torch.full_like(picture, 128) if given.wrist else None,
        proprio=torch.zeros(1, width, device=device) if width else None,
    )


@torch.no_grad()
def look_at(backbone: Any, given: BackboneConfig, image: UInt8[np.ndarray, "H W 3"], instruction: str) -> Look:
    """Where `instruction` looks. A second camera, where the backbone has one, shows grey; robot state is zero."""
    features: Features = backbone(_inputs(backbone, given, image, instruction), attention="instruction")
    scores, heads = saliency(features.attention, features.token_mask), per_head(features)[0]
    inner = getattr(backbone, "inner", backbone)  # a pretrained backbone wraps its family's
    layers = getattr(inner, "saliency_layers", None) or tuple(range(len(heads)))  # one of another kind counts from 0
    return Look(scores[0].cpu().numpy(), heads.cpu().numpy(), layers, features.grid, features.channel)


def look(
    source: str,
    image: Path,
    instruction: str,
    out: Path,
    against: str | None = None,
    per_head: bool = False,
    layers: int | None = None,
    device: str = "auto",
) -> list[str]:
    """Draw the map as PNG and return its numbers. A run that reconstructs what attention picks shows that too.

    Args:
        source: a run's folder, a model's folder, or an id on the hub.
        image: a picture.
        instruction: of the robot.
        out: the PNG.
        against: another instruction to compare with.
        per_head: one row per layer, one column per head.
        layers: how many of the last layers are read; 3 without it.
        device: auto, cpu, cuda or mps.

    Returns:
        Lines to print.

    Raises:
        UserError: if something is missing or does not fit.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"the map is a PNG: give --out a name that ends in .png, not {out.name}")
    shown = read_picture(image)
    backbone, given, fit, painter = open_backbone(source, layers)
    backbone.to(pick_device(device))
    picture = resize(shown[None], backbone.grid[0] * backbone.patch_size, fit)[0]
    texts = [instruction] if against is None else [instruction, against]
    looks = [look_at(backbone, given, picture, text) for text in texts]
    if per_head:
        rows = {f"layer {layer}": looks[0].heads[i] for i, layer in enumerate(looks[0].layers)}
        content = drawing.head_grid(picture, instruction, rows, looks[0].grid)
    elif painter is not None and against is None:
        content = _reconstructed(*painter, given.chunk, _inputs(backbone, given, picture, instruction))
    else:
        maps = {text: each.saliency[None] for text, each in zip(texts, looks, strict=True)}
        title = f"{instruction} ({drawing.readable(looks[0].channel)})"
        content = drawing.attention_grid(picture[None], [title], maps, looks[0].grid)
    write_content(out, content)
    lines = looks[0].lines()
    if against is not None:
        apart = instruction_difference(*(each.saliency[None] for each in looks))[0]
        lines += [f"against '{against}': {looks[1].lines()[2]}", f"difference of the maps (1 - cosine): {apart:.4f}"]
    return [*lines, str(out)]


def _reconstructed(policy: Policy, arm: Condition, chunk: int, inputs: PolicyInput) -> bytes:
    """Image, attention, mask and reconstruction of one picture, as PNG."""
    device = inputs.images.device
    unknown = torch.zeros(1, chunk, len(policy.bins.space), device=device)
    valid = torch.zeros(1, chunk, dtype=torch.bool, device=device)
    batch = Batch(inputs.images, inputs.instructions, unknown, valid, inputs.wrist, inputs.proprio)
    found = draw(policy.to(device), arm, batch, seed=0)
    assert found.mask is not None  # as it follows attention
    assert found.painted is not None
    image = inputs.images.permute(0, 2, 3, 1).cpu().numpy()
    told = inputs.instructions
    return drawing.reconstruction_strip(image, found.mask, found.painted, found.grid, told, found.saliency)
