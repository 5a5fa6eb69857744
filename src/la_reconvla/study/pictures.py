"""Pictures of a study for its report: what arms look at and paint.

A timeline is one episode picture by picture. Every arm shows the same episode at the same control steps, so that the
report can move all of them with one slider.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8

from la_reconvla import drawing, layout
from la_reconvla.analysis.results import Picture, Timeline
from la_reconvla.conditions import Condition
from la_reconvla.contracts import Batch
from la_reconvla.data.boxes import Annotator, annotator
from la_reconvla.data.samples import Samples, spread_indices
from la_reconvla.errors import UserError
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import MEAN
from la_reconvla.method.variants.targets import unpatchify
from la_reconvla.randomness import generator
from la_reconvla.storage import write_content
from la_reconvla.study.cells import Cell
from la_reconvla.study.parts import boxes_beside, part_masks, phases
from la_reconvla.study.presets import StudyConfig
from la_reconvla.training.checkpoint import load_policy
from la_reconvla.training.held_out import LOOKS, WATCHED

FRAMES = 4  # in the attention grid
LAPSE = 6  # steps of the training that are shown
STEPS = 16  # pictures of a timeline
SIDE = 160  # largest side of its pictures, in pixels
FOLDER = f"{layout.MAPS}/timeline"


@dataclass(frozen=True, eq=False)
class Drawing:
    """What one policy looks at and reconstructs on a batch of frames.

    Attributes:
        saliency: float32 [b n], what the arm's mask follows, or the mean map where it follows none.
        grid: rows and columns of patches.
        mask: [b n], True = reconstruct; None where the arm reconstructs a crop, or nothing.
        wanted: uint8 [b H W 3], the picture to reconstruct; None where the arm reconstructs nothing.
        painted: uint8 [b H W 3], what the head made of it.
    """

    saliency: Float[np.ndarray, "b n"]
    grid: tuple[int, int]
    mask: Bool[np.ndarray, "b n"] | None = None
    wanted: UInt8[np.ndarray, "b H W 3"] | None = None
    painted: UInt8[np.ndarray, "b H W 3"] | None = None


@torch.no_grad()
def draw(policy: Policy, arm: Condition, batch: Batch, seed: int) -> Drawing:
    """The arm's own map on `batch`, and what its head makes of what the mask hides.

    Args:
        policy: a trained policy, on the CPU.
        arm: the condition that it was trained under.
        batch: frames; with boxes of the target if the arm is told them.
        seed: of random masks and of the noise that a diffusion head begins with.
    """
    own = arm.saliency or MEAN
    seen = policy.features(batch, attention=own.attention_rows)
    looks = own(seen).cpu().numpy()
    extra, grid = arm.reconstruction, policy.backbone.grid
    if extra is None or policy.reconstruction_head is None:
        return Drawing(looks, grid)
    draws = generator(seed, "picture")
    _, mask = extra.choose_patches(seen, batch.gaze, draws, 1.0)
    patches = policy.features(batch, hidden=mask if extra.mask_at == "input" else None).patches
    wanted = extra.picture(batch, draws)
    painted = policy.reconstruction_head.picture(patches, mask, policy.reconstruction_head.target(wanted))
    return Drawing(
        looks,
        grid,
        None if mask is None else mask.cpu().numpy(),
        _pixels(wanted),
        _pixels(unpatchify(painted, grid, policy.backbone.patch_size)),
    )


def _pixels(images: torch.Tensor) -> UInt8[np.ndarray, "b H W 3"]:
    return images.permute(0, 2, 3, 1).cpu().numpy()


def pictures(study: Path, config: StudyConfig, cells: Sequence[Cell], samples: Samples) -> Iterator[Picture]:
    """What each arm's mask follows on the same held-out frames, its reconstructions there, and its map in training.

    Nothing without cells.
    """
    if not cells:
        return
    chosen = spread_indices(len(samples), FRAMES + 2)[1:-1]
    batch = samples.batch(chosen)
    images, told = _pixels(batch.images), batch.instructions
    seed, maps, masks = config.seeds[0], {}, {}
    made: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    grid = (0, 0)
    for cell in cells:
        arm, (policy, _) = cell.condition, load_policy(cell.folder)
        boxed = batch if arm.annotation_free else samples.annotated(annotator(config.gaze)).batch(chosen)
        found = draw(policy, arm, boxed, seed)
        grid, maps[arm.id] = found.grid, found.saliency
        if found.wanted is None or found.painted is None:
            continue
        if found.mask is None:
            made[arm.id] = found.wanted, found.painted
            continue
        hidden = np.stack([drawing.hidden_out(*pair, grid) for pair in zip(images, found.mask, strict=True)])
        painted = zip(images, found.mask, found.painted, strict=True)
        made[arm.id] = hidden, np.stack([drawing.painted_in(*each, grid) for each in painted])
        if arm.saliency is not None:
            masks[arm.id] = found.mask
    if made:
        name = f"{layout.MAPS}/reconstruction.png"
        write_content(study / name, drawing.reconstruction_rows(images, told, made))
        yield Picture(name, "reconstruction", f"What each arm is shown and what it makes of it, seed {seed}")
    name, targets = f"{layout.MAPS}/attention.png", _targets(samples, chosen, config)
    write_content(study / name, drawing.attention_grid(images, told, maps, grid, masks, targets))
    yield Picture(name, "attention", f"Attention on held-out frames, seed {seed}")
    yield from _lapse(study, config, cells, samples, grid)


def _targets(
    samples: Samples, chosen: Int64[np.ndarray, " b"], config: StudyConfig
) -> Bool[np.ndarray, "b H W"] | None:
    """Where the target shows in these samples; None where nothing says it."""
    boxes = boxes_beside(samples.demonstrations, config.gaze)
    if boxes is None and not samples.demonstrations.episodes[0].instance_names:
        return None
    return part_masks(samples, chosen, boxes)[:, 0]


def _lapse(
    study: Path, config: StudyConfig, cells: Sequence[Cell], samples: Samples, grid: tuple[int, int]
) -> Iterator[Picture]:
    """The mean map of every arm on one frame while it was trained; nothing of trainings that left fewer than two maps.

    The frame is the first watched one in which the target shows.
    """
    looks = {cell.condition.id: {int(p.stem): p for p in (cell.folder / LOOKS).glob("*.npy")} for cell in cells}
    looks = {arm: found for arm, found in looks.items() if found}
    steps = sorted(set.intersection(*map(set, looks.values()))) if looks else []
    if len(steps) < 2:
        return
    steps = [steps[i] for i in spread_indices(len(steps), LAPSE)]
    watched = spread_indices(len(samples), WATCHED)
    targets = _targets(samples, watched, config)
    row = 0 if targets is None else int(targets.any((1, 2)).argmax())
    image = _pixels(samples.batch(watched[row : row + 1]).images)
    maps = {f"step {s}": np.stack([np.load(found[s])[row] for found in looks.values()]) for s in steps}
    seen = None if targets is None else np.repeat(targets[row : row + 1], len(looks), 0)
    name = f"{layout.MAPS}/training.png"
    content = drawing.attention_grid(np.repeat(image, len(looks), 0), list(looks), maps, grid, targets=seen)
    write_content(study / name, content)
    yield Picture(
        name, "training", f"The mean map on one held-out frame while policies were trained, seed {config.seeds[0]}"
    )


def episode_indices(samples: Samples, count: int = STEPS) -> Int64[np.ndarray, " m"]:
    """Samples of the first episode, its first and its last among them; up to `count`, evenly spread.

    The first one is taken whatever happens in it, so that no episode is chosen for how it looks.
    """
    first, _ = samples.origin(0)
    numbers = np.array([i for i in range(len(samples)) if samples.origin(i)[0] is first])
    return numbers[spread_indices(len(numbers), count)]


def timelines(
    study: Path,
    arms: Iterable[tuple[Condition, Path]],
    samples: Samples,
    boxes: Annotator | None = None,
    *,
    seed: int = 0,
    count: int = STEPS,
) -> Iterator[Timeline]:
    """Draw one held-out episode under every arm, below ``maps/timeline`` of the study, and return the paths.

    Args:
        study: folder of the study.
        arms: each condition with the folder of its trained policy.
        samples: held-out samples; the first episode is shown.
        boxes: source of the target's boxes, for arms that use them.
        seed: see `draw`.
        count: pictures of a timeline at most.

    Raises:
        UserError: an arm needs boxes and nobody is there to give them.
    """
    indices = episode_indices(samples, count)
    batch = samples.batch(indices)
    images = _pixels(batch.images)
    episode, _ = samples.origin(int(indices[0]))
    at = tuple(samples.origin(int(i))[1] for i in indices)
    whole = phases(episode)
    frames = _save(study, "frame", images, at)
    for arm, folder in arms:
        told = batch
        if not arm.annotation_free:
            if boxes is None:
                raise UserError(f"{arm.id} is told where the target is: give boxes with --gaze")
            told = samples.annotated(boxes).batch(indices)
        policy, _ = load_policy(folder)
        found = draw(policy, arm, told, seed)
        heat = np.stack([drawing.overlay(i, s, found.grid) for i, s in zip(images, found.saliency, strict=True)])
        painted = found.painted
        if painted is not None and found.mask is not None:
            painted = np.stack(
                [drawing.painted_in(*shown, found.grid) for shown in zip(images, found.mask, painted, strict=True)]
            )
            if arm.saliency is not None:
                heat = np.stack([drawing.edged(h, m, found.grid) for h, m in zip(heat, found.mask, strict=True)])
        yield Timeline(
            condition=arm.id,
            episode=episode.name,
            instruction=episode.instruction,
            steps=at,
            phases=tuple(whole[step] for step in at),
            attention=_save(study, f"{arm.id}_attention", heat, at),
            reconstruction=() if painted is None else _save(study, f"{arm.id}_reconstruction", painted, at),
            frames=frames,
        )


def _save(study: Path, name: str, pictures: UInt8[np.ndarray, "b H W 3"], at: tuple[int, ...]) -> tuple[str, ...]:
    """Write one PNG a step; their paths relative to the study's folder."""
    paths = tuple(f"{FOLDER}/{name}_{step:04d}.png" for step in at)
    for path, picture in zip(paths, pictures, strict=True):
        write_content(study / path, drawing.small_png(picture, SIDE))
    return paths
