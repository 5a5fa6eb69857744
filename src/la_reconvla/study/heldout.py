"""What a trained policy does on frames that it never saw: action error under three views, and where it looks.

The error under a grey image and under a wrong instruction are floors: a policy whose error does not rise there does not
use what was taken away. Frames are the same for every condition and are paired by their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from la_reconvla.checkpoint import load_policy
from la_reconvla.contracts import Batch, Rows, SaliencySource
from la_reconvla.data.samples import Samples, greyed, spread_indices
from la_reconvla.errors import UserError
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import MEAN
from la_reconvla.randomness import derive
from la_reconvla.sim.policies import View
from la_reconvla.study import causal, grounding
from la_reconvla.study.parts import PARTS, part_boxes, part_maps, phases
from la_reconvla.study.results import MAP_FIELDS, Watched
from la_reconvla.train import LOOKS, to_device

VERSION = 2  # of the records; older ones are measured again
CAUSAL = 96  # frames on which things are hidden: each takes some dozen passes
INSTRUCTIONS = 8  # at most so many are told of one picture
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
def action_errors(policy: Policy, batch: Batch) -> Float[np.ndarray, " b"]:
    """See `UNIT`; steps past the end of an episode do not count."""
    acted = policy.act(batch.images, batch.instructions, batch.wrist, batch.proprio)
    error = (acted - batch.actions).abs()[..., :MOTION].mean(-1)
    return ((error * batch.valid).sum(1) / batch.valid.sum(1)).cpu().numpy()


def measure_run(
    run: Path,
    samples: Samples,
    indices: Int64[np.ndarray, " m"],
    swaps: tuple[tuple[int, str, str], ...],
    batch_size: int = 32,
    device: str = "cpu",
    source: SaliencySource = MEAN,
) -> dict[View, list[dict[str, Any]]]:
    """Records of one run on held-out frames.

    Args:
        run: folder of a finished run.
        samples: held-out samples at the policy's image size and chunk.
        indices: which of them.
        swaps: see `la_reconvla.sim.policies.swapped`.
        batch_size: samples a forward pass.
        device: where the policy runs.
        source: what the arm's own mask follows.

    Returns:
        For each view, one record a frame: seed, task, scene, episode, frame and ``action_error``; under the true view
        also the fields of `la_reconvla.study.grounding.Grounding` for the target, those for the destination with the
        prefix ``destination_``, ``aid``, one minus the cosine with the map under the wrong instruction, and
        ``channel``, whose attention the map is made of (`la_reconvla.contracts.Features`). All of these are of the mean
        map, so that arms compare. If `source` is another, the same fields of its map follow with the prefix ``own_``,
        and ``own_source`` names it.
        ``phase`` is that of the episode, ``maps`` the overlap of each kind of map with each of `PARTS` (`controlled`),
        and on up to `CAUSAL` frames ``causal`` says what hiding things does (`la_reconvla.study.causal.effects`).
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
    told = sorted({true for _, true in table})
    hiding = set(indices[spread_indices(len(indices), CAUSAL)].tolist())
    masked = bool(samples.demonstrations.episodes[0].instance_names)
    phase = {episode.name: phases(episode) for episode in samples.demonstrations.episodes if masked}
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
        if masked:
            ours = records["true"][-len(part) :]
            grounded = _grounding(policy, samples, part, batch, tasks, table, source)
            maps = controlled(policy, batch, told, part_maps(samples, part, policy.backbone.grid))
            for record, fields, overlaps, (episode, step) in zip(ours, grounded, maps, origins, strict=True):
                record |= {**fields, "maps": overlaps, "phase": phase[episode.name][step]}
            chosen = np.array([int(index) in hiding for index in part])
            if chosen.any() and not config.blind:
                some = to_device(samples.batch(part[chosen]), torch.device(device), config.blind)
                # The same boxes for every policy, however frames are divided into batches.
                draws = [np.random.default_rng(derive(0, f"occlusion/{index}")) for index in part[chosen]]
                shown = causal.effects(policy, some, part_boxes(samples, part[chosen]), draws)
                for row, effect in zip(np.flatnonzero(chosen), shown or (), strict=bool(shown)):
                    ours[row]["causal"] = effect
    return records


@torch.no_grad()
def controlled(
    policy: Policy, batch: Batch, told: Sequence[str], coverage: Float[np.ndarray, "b 3 n"]
) -> list[dict[str, dict[str, list[Any]]]]:
    """Overlap of the policy's mean map with each thing, beside four controls that cannot follow the instruction.

    ``uniform`` is a constant map, ``centre`` a Gaussian about the middle, ``mean_map`` the mean of the policy's own
    maps of this picture under the instructions tried, ``shuffled`` the mean score of its maps under the others of them.

    Args:
        policy: whose maps.
        batch: the frames.
        told: instructions of the study; `INSTRUCTIONS` at most are tried, those of the batch first. With one only
            nothing can be shuffled.
        coverage: share of each patch on each of `PARTS`.

    Returns:
        For each frame, thing and kind of map the values of `MAP_FIELDS`; None where the thing is not to be seen.
    """

    def look(texts: list[str]) -> Float[np.ndarray, "b n"]:
        return policy.look(batch.images, texts, batch.wrist, batch.proprio).double().cpu().numpy()

    own, count = batch.instructions, len(batch.instructions)
    shown = list(dict.fromkeys([*own, *told]))[: max(INSTRUCTIONS, len(set(own)))]
    looks = {text: look([text] * count) for text in shown}
    others = [[text for text in shown if text != true] for true in own]
    kinds: dict[str, list[Float[np.ndarray, "b n"]]] = {
        "policy": [np.stack([looks[true][row] for row, true in enumerate(own)])],
        "uniform": [grounding.uniform(count, policy.backbone.grid)],
        "centre": [grounding.centre_prior(count, policy.backbone.grid)],
        "mean_map": [np.mean(list(looks.values()), axis=0)],
        "shuffled": [
            np.stack([looks[other[turn]][row] for row, other in enumerate(others)]) for turn in range(len(shown) - 1)
        ],
    }
    result: list[dict[str, dict[str, list[Any]]]] = [{part: {} for part in PARTS} for _ in own]
    for column, part in enumerate(PARTS):
        for kind, maps in kinds.items():
            if maps:
                found = grounding.averaged([grounding.measure(one, coverage[:, column]) for one in maps])
                for row, record in zip(result, found, strict=True):
                    row[part][kind] = [_short(record[name]) for name in MAP_FIELDS]
    return result


def _short(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def _grounding(policy: Policy, samples: Samples, part, batch: Batch, tasks, table, source) -> list[dict[str, Any]]:
    coverage = samples.instance_patches(part, ("target", "destination"), policy.backbone.grid)
    views: tuple[View, ...] = ("true", "wrong_instruction")
    shown = [view_of(batch, view, tasks, table) for view in views]
    found = measure_sources(policy, shown[0], shown[1], coverage, (MEAN, source))
    records = found[MEAN]
    if source != MEAN:
        for record, own in zip(records, found[source], strict=True):
            record |= {f"own_{name}": value for name, value in own.items()} | {"own_source": source.label}
    return records


def watched(run: Path, coverage: Float[np.ndarray, "m n"]) -> tuple[Watched, ...]:
    """How the maps of a training changed from check to check, from the files of `la_reconvla.train.save_looks`.

    Args:
        run: folder of the run.
        coverage: share of each patch on the target in those held-out samples; of none if that is not known.

    Returns:
        One for each check, by step; empty for a run that left no maps.
    """
    found: list[Watched] = []
    before: Float[np.ndarray, "m n"] | None = None
    for path in sorted((run / LOOKS).glob("*.npy")):
        maps = np.load(path, allow_pickle=False).astype(np.float64)
        overlap = grounding.measure(maps, coverage) if coverage.shape == maps.shape else None
        drift = None if before is None else float(grounding.instruction_difference(maps, before).mean())
        found.append(
            Watched(
                step=int(path.stem),
                aos=None if overlap is None else float(np.nanmean(overlap.aos)),
                aos_chance=None if overlap is None else float(np.nanmean(overlap.aos_chance)),
                drift=drift,
                entropy=float(grounding.entropy(maps).mean()),
            )
        )
        before = maps
    return tuple(found)


@torch.no_grad()
def measure_sources(
    policy: Policy,
    batch: Batch,
    wrong: Batch,
    coverage: Float[np.ndarray, "b 2 n"],
    sources: Iterable[SaliencySource],
) -> dict[SaliencySource, list[dict[str, Any]]]:
    """Grounding of the maps of several sources on one batch; one pass of the backbone for each kind of rows and view.

    Args:
        policy: whose attention; a source that has learned something needs `Policy.saliency_state`.
        batch: the frames.
        wrong: the same under another instruction.
        coverage: share of each patch on the target and on the destination.
        sources: which maps; equal ones are measured once.

    Returns:
        For each source one record a frame: the fields of `la_reconvla.study.grounding.Grounding` for the target, those
        for the destination with the prefix ``destination_``, ``aid`` and ``channel``.
    """
    chosen = dict.fromkeys(sources)
    kinds: tuple[Rows, ...] = ("instruction", "actions")
    seen = {
        rows: [policy.features(shown, attention=rows) for shown in (batch, wrong)]
        for rows in kinds
        if any(source.rows == rows for source in chosen)
    }
    found: dict[SaliencySource, list[dict[str, Any]]] = {}
    for source in chosen:
        looks = [source(features, policy.saliency_state).cpu().numpy() for features in seen[source.rows]]
        target = grounding.measure(looks[0], coverage[:, 0]).records()
        destination = grounding.measure(looks[0], coverage[:, 1]).records()
        aid, channel = grounding.instruction_difference(*looks), seen[source.rows][0].channel
        found[source] = [
            {**t, **{f"destination_{name}": value for name, value in d.items()}, "aid": float(a), "channel": channel}
            for t, d, a in zip(target, destination, aid, strict=True)
        ]
    return found


def sources_table(
    policy: Policy,
    samples: Samples,
    indices: Int64[np.ndarray, " m"],
    swaps: tuple[tuple[int, str, str], ...],
    sources: Iterable[SaliencySource],
    batch_size: int = 32,
) -> dict[str, dict[str, float]]:
    """Means over held-out frames for each source of any policy, by the source's label.

    Args:
        policy: where it is; sources that learn must have been fitted (`la_reconvla.train.choose`).
        samples: held-out samples with instance masks, at the policy's image size and chunk.
        indices: which of them.
        swaps: see `la_reconvla.sim.policies.swapped`.
        sources: which, each with a label of its own.
        batch_size: samples a forward pass.

    Returns:
        label -> column -> mean over the frames in which it is defined: ``aos`` with ``aos_chance`` and ``aos_ceiling``,
        ``aos_g`` with ``aos_g_chance``, ``mass_over_area``, ``pointing``, ``auroc``, ``aid``, ``destination_auroc``,
        and ``frames``, on how many the target is visible.

    Raises:
        UserError: if the demonstrations have no instance masks.
    """
    if not samples.demonstrations.episodes[0].instance_names:
        raise UserError("these demonstrations have no instance masks: collect some with la-reconvla collect")
    chosen, table = tuple(dict.fromkeys(sources)), {(task, true): wrong for task, true, wrong in swaps}
    device = next(policy.parameters()).device
    records: dict[str, list[dict[str, Any]]] = {source.label: [] for source in chosen}
    for part in np.array_split(indices, max(1, -(-len(indices) // batch_size))):
        batch = to_device(samples.batch(part), device, blind=False)
        tasks = [samples.origin(int(index))[0].task or 0 for index in part]
        wrong = view_of(batch, "wrong_instruction", tasks, table)
        coverage = samples.instance_patches(part, ("target", "destination"), policy.backbone.grid)
        for source, rows in measure_sources(policy, batch, wrong, coverage, chosen).items():
            records[source.label] += rows
    return {label: _means(rows) for label, rows in records.items()}


COLUMNS = ("aos", "aos_chance", "aos_ceiling", "aos_g", "aos_g_chance", "mass_over_area", "pointing", "auroc", "aid")


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    means = {"frames": float(sum(row["visible"] for row in rows))}
    for name in (*COLUMNS, "destination_auroc"):
        values = [row[name] for row in rows if row[name] is not None]
        means[name] = float(np.mean(values)) if values else float("nan")
    return means
