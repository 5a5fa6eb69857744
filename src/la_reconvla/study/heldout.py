"""What a trained policy does on frames that it never saw: action error under three views, and where it looks.

The error under a grey image and under a wrong instruction are floors: a policy whose error does not rise there does not
use what was taken away. Frames are the same for every condition and are paired by their name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from la_reconvla.checkpoint import load_policy
from la_reconvla.contracts import Batch
from la_reconvla.data.samples import Samples, greyed
from la_reconvla.errors import UserError
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import saliency
from la_reconvla.sim.policies import View
from la_reconvla.study import grounding
from la_reconvla.train import to_device

UNIT = "mean absolute error of the six motion dimensions over a chunk, in the environment's units ([-1, 1])"
VIEWS: tuple[View, ...] = ("true", "grey_image", "wrong_instruction")
MOTION = 6  # the gripper is two-valued; a late or early grasp would drown everything else


def view_of(batch: Batch, view: View, tasks: list[int], swaps: Mapping[tuple[int, str], str]) -> Batch:
    """The batch as this view shows it."""
    if view == "grey_image":
        return greyed(batch)
    if view == "wrong_instruction":
        told = [swaps[task, text] for task, text in zip(tasks, batch.instructions, strict=True)]
        return replace(batch, instructions=told)
    return batch


@torch.no_grad()
def action_errors(policy: Policy, batch: Batch) -> Float[np.ndarray, "b"]:
    """See `UNIT`; steps past the end of an episode do not count."""
    acted = policy.act(batch.images, batch.instructions, batch.wrist, batch.proprio)
    error = (acted - batch.actions).abs()[..., :MOTION].mean(-1)
    return ((error * batch.valid).sum(1) / batch.valid.sum(1)).cpu().numpy()


def measure_run(
    run: Path,
    samples: Samples,
    indices: Int64[np.ndarray, "m"],
    swaps: tuple[tuple[int, str, str], ...],
    batch_size: int = 32,
    device: str = "cpu",
) -> dict[View, list[dict[str, Any]]]:
    """Records of one run on held-out frames.

    Args:
        run: folder of a finished run.
        samples: held-out samples at the policy's image size and chunk.
        indices: which of them.
        swaps: see `la_reconvla.sim.policies.swapped`.
        batch_size: samples a forward pass.
        device: where the policy runs.

    Returns:
        For each view, one record a frame: seed, task, scene, episode, frame and ``action_error``; under the true view
        also the fields of `la_reconvla.study.grounding.Grounding` for the target, those for the destination with the
        prefix ``destination_``, ``aid``, one minus the cosine with the map under the wrong instruction, and
        ``channel``, whose attention the map is made of (`la_reconvla.contracts.Features`).
        Demonstrations without instance masks (LIBERO's own files) yield no grounding fields.

    Raises:
        UserError: if the run does not fit the samples.
    """
    policy, config = load_policy(run)
    policy.to(device)
    if config.quality != samples.demonstrations.quality:
        raise UserError(
            f"{run} was trained on '{config.quality}' frames, the held-out ones are "
            f"'{samples.demonstrations.quality}': evaluate on data of the same render quality"
        )
    table = {(task, true): wrong for task, true, wrong in swaps}
    records: dict[View, list[dict[str, Any]]] = {view: [] for view in VIEWS}
    for part in np.array_split(indices, max(1, -(-len(indices) // batch_size))):
        batch = to_device(samples.batch(part), torch.device(device), config.blind)
        origins = [samples.origin(int(index)) for index in part]
        tasks = [episode.task or 0 for episode, _ in origins]
        keys = [
            {"seed": config.seed, "task": task, "scene": episode.scene, "episode": episode.name, "frame": step}
            for (episode, step), task in zip(origins, tasks, strict=True)
        ]
        for view in VIEWS:
            errors = action_errors(policy, view_of(batch, view, tasks, table))
            records[view] += [{**key, "action_error": float(e)} for key, e in zip(keys, errors, strict=True)]
        if samples.demonstrations.episodes[0].instance_names:
            for record, fields in zip(
                records["true"][-len(part) :], _grounding(policy, samples, part, batch, tasks, table), strict=True
            ):
                record.update(fields)
    return records


def _grounding(policy: Policy, samples: Samples, part, batch: Batch, tasks, table) -> list[dict[str, Any]]:
    grid = policy.backbone.grid
    coverage = samples.instance_patches(part, ("target", "destination"), grid)
    views: tuple[View, ...] = ("true", "wrong_instruction")
    seen = [policy.features(view_of(batch, view, tasks, table), attention="instruction") for view in views]
    looks = [saliency(features.attention, features.rows).cpu().numpy() for features in seen]
    channel = seen[0].channel
    target = grounding.measure(looks[0], coverage[:, 0]).records()
    destination = grounding.measure(looks[0], coverage[:, 1]).records()
    aid = grounding.instruction_difference(*looks)
    return [
        {**t, **{f"destination_{name}": value for name, value in d.items()}, "aid": float(a), "channel": channel}
        for t, d, a in zip(target, destination, aid, strict=True)
    ]
