"""What carries a relation: what must be taken away before a policy goes for the wrong one of two alike things?

    python benchmarks/relations.py base demos/spatial --out relations.json

A wide scene is recorded with two instructions that differ in a relation alone ("between the plate and the ramekin",
"next to the ramekin"). On its first frame the policy is given each. It chooses right if its chunk of actions is nearer
to the expert's under this instruction than to the expert's under the other one. The same is asked with one kind of
attention of the language model cut in every layer, with what reaches the action head taken from the pass under the
other instruction, and with a grey picture. Beside it: on which of the two things the mean map of the words and of the
action tokens is heavier, per area.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from la_reconvla.analysis.intervals import wilson
from la_reconvla.contracts import Batch, Features
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples, greyed
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import MEAN
from la_reconvla.method.variants.action_rows import ActionRows
from la_reconvla.storage import write_json
from la_reconvla.study.parts import part_masks, part_patches
from la_reconvla.training.checkpoint import find_run, load_policy

MOTION = 6
CUTS = {  # (rows that no longer read, what they no longer read)
    "nothing cut": (),
    "words do not read the picture": (("words", "patches"),),
    "the picture does not read words": (("patches", "words"),),
    "actions do not read words": (("actions", "words"),),
    "actions do not read the picture": (("actions", "patches"),),
    "nothing but words reads words": (("actions", "words"), ("patches", "words")),
}


@contextlib.contextmanager
def cut(policy: Policy, edges: tuple[tuple[str, str], ...]) -> Iterator[None]:
    """Within it, no layer of the language model has attention from the first of each pair to the second."""
    backbone: Any = policy.backbone
    patches, chunk = backbone.grid[0] * backbone.grid[1], backbone.config.chunk

    def hide(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask: Tensor | None = options["attention_mask"]
        states: Tensor = options["hidden_states"] if "hidden_states" in options else arguments[0]
        length = states.shape[1]
        where = {
            "patches": slice(0, patches),
            "words": slice(patches, length - chunk),
            "actions": slice(length - chunk, length),
        }
        if mask is None:
            mask = torch.ones(len(states), 1, length, length, dtype=torch.bool)
        mask = mask.clone()
        for rows, columns in edges:
            mask[:, :, where[rows], where[columns]] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return arguments, {**options, "attention_mask": mask}

    handles = [layer.self_attn.register_forward_pre_hook(hide, with_kwargs=True) for layer in backbone.language.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pairs(samples: Samples) -> list[tuple[int, int]]:
    """First frames of one scene under two instructions, each way round; numbers of samples."""
    scenes: dict[tuple[str | None, int | None, str], dict[str, int]] = defaultdict(dict)
    for index in range(len(samples)):
        episode, step = samples.origin(index)
        if step == 0:
            scenes[episode.suite, episode.task, episode.scene].setdefault(episode.instruction, index)
    return [pair for told in scenes.values() for pair in itertools.permutations(told.values(), 2)]


def chosen(policy: Policy, batch: Batch, other: Batch, features: Features) -> list[bool]:
    """Whether each chunk is nearer to the expert's than to the expert's of the other instruction."""
    acted = policy.bins.decide(policy.action_head(features))[..., :MOTION]
    both = (batch.valid & other.valid)[..., None]
    near, far = ((acted - shown.actions[..., :MOTION]).abs() * both for shown in (batch, other))
    return (near.sum((1, 2)) < far.sum((1, 2))).tolist()


@torch.no_grad()
def choices(policy: Policy, batch: Batch, other: Batch) -> dict[str, list[bool]]:
    """`chosen` for everything that is taken away."""
    rows = {}
    for name, edges in CUTS.items():
        with cut(policy, edges):
            rows[name] = chosen(policy, batch, other, policy.features(batch))
    ours, theirs = policy.features(batch), policy.features(other)
    rows["instruction state of the other"] = chosen(
        policy, batch, other, replace(ours, instruction_state=theirs.instruction_state)
    )
    rows["action states of the other"] = chosen(policy, batch, other, replace(ours, action_states=theirs.action_states))
    rows["grey picture"] = chosen(policy, batch, other, policy.features(greyed(batch)))
    return rows


@torch.no_grad()
def heavier(policy: Policy, batch: Batch, things: np.ndarray) -> dict[str, list[bool]]:
    """Whether each map has more weight per area on the asked thing than on its twin, where both are to be seen."""
    target, twin = things[:, 0], things[:, 2]
    shown = (target.sum(1) > 0) & (twin.sum(1) > 0)
    found = {}
    for name, source in (("words", MEAN), ("actions", ActionRows())):
        maps = source(policy.features(batch, attention=source.attention_rows)).numpy()
        on, off = ((maps * thing).sum(1) / np.maximum(thing.sum(1), 1e-9) for thing in (target, twin))
        found[name] = (on > off)[shown].tolist()
    return found


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("demonstrations", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    policy, config = load_policy(find_run(args.run))
    samples = Samples(open_demonstrations(args.demonstrations), config.image_size, config.backbone.chunk)
    asked, others = map(np.array, zip(*pairs(samples), strict=True))
    batch, other = samples.batch(asked), samples.batch(others)
    rows = choices(policy, batch, other)
    things = part_patches(part_masks(samples, asked), policy.backbone.grid)
    rows |= {f"map of the {name}": right for name, right in heavier(policy, batch, things).items()}
    result = {}
    for name, right in rows.items():
        share, interval = sum(right) / len(right), wilson(sum(right), len(right))
        result[name] = {"right": sum(right), "of": len(right)}
        print(f"{name:34} {sum(right):4} of {len(right):4}  {share:.2f} ({interval.low:.2f} to {interval.high:.2f})")
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
