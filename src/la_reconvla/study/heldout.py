"""A trained policy on held-out frames: action error under three views, and where it looks.

The error under a grey image and under a wrong instruction are floors: a policy whose error does not rise there does not
use what was taken away. Frames are the same for every condition and are paired by their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from la_reconvla import layout
from la_reconvla.analysis import attention_overlap as grounding
from la_reconvla.analysis.attention_overlap import FrameOverlap
from la_reconvla.analysis.frames import FrameMap, FrameRecord, HeldOut, Occlusion
from la_reconvla.analysis.measures import MapKind, MapPart, Watched
from la_reconvla.contracts import AttentionRows, Batch
from la_reconvla.data.boxes import Annotator
from la_reconvla.data.samples import Samples, greyed, spread_indices
from la_reconvla.episodes import View
from la_reconvla.errors import UserError
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import MEAN, SaliencySource
from la_reconvla.randomness import derive
from la_reconvla.robot import LIBERO_ACTIONS
from la_reconvla.storage import read_json, write_json
from la_reconvla.study import occlusion as causal
from la_reconvla.study.parts import PARTS, part_boxes, part_masks, part_patches, phases
from la_reconvla.training.acting import stream_of, with_noise
from la_reconvla.training.checkpoint import load_policy
from la_reconvla.training.gradient import to_device
from la_reconvla.training.held_out import LOOKS

HIDING = 96  # frames on which things are hidden: each takes some dozen passes
INSTRUCTIONS = 8  # at most so many are told of one picture
UNIT = "mean absolute error of the six motion dimensions over a chunk, in the environment's units ([-1, 1])"
OTHER_UNIT = (
    "mean absolute error of the continuous dimensions over a chunk; in each the range of the training actions (1st to "
    "99th percentile; of diffusion and flow least to largest) counts 2, as LIBERO's [-1, 1] does"
)
VIEWS: tuple[View, ...] = ("true", "grey_image", "wrong_instruction")
MapOverlaps = dict[MapPart, dict[MapKind, FrameOverlap]]


def view_of(batch: Batch, view: View, tasks: list[int], swaps: Mapping[tuple[int, str], str]) -> Batch:
    """The batch as this view shows it."""
    if view == "grey_image":
        return greyed(batch)
    if view == "wrong_instruction":
        told = [swaps[task, text] for task, text in zip(tasks, batch.instructions, strict=True)]
        return replace(batch, instructions=told)
    return batch


@torch.no_grad()
def action_errors(policy: Policy, batch: Batch, streams: Sequence[torch.Generator]) -> Float[np.ndarray, " b"]:
    """See `UNIT` and `OTHER_UNIT`; steps past the end of an episode do not count. `streams`: see `with_noise`."""
    acted, space = policy.act(with_noise(policy, batch.inputs, streams)), policy.bins.space
    error = (acted - batch.actions).abs()
    if space != LIBERO_ACTIONS:  # numbers of different units do not add up
        low, high = (torch.tensor(edges, device=error.device) for edges in (policy.bins.low, policy.bins.high))
        error = error / ((high - low) / 2)
    error = error[..., space.motions].mean(-1)
    return ((error * batch.valid).sum(1) / batch.valid.sum(1)).cpu().numpy()


def write_held_out(folder: Path, found: HeldOut) -> None:
    """Write a run's records into its folder, atomically."""
    write_json(folder / layout.HELD_OUT, found.to_json())


def read_held_out(folder: Path) -> HeldOut:
    """The records of a run.

    Raises:
        UserError: as `HeldOut.from_json`, or there is no such file.
    """
    path = folder / layout.HELD_OUT
    return HeldOut.from_json(read_json(path), str(path))


Records = dict[View, list[FrameRecord]]


def measure_run(
    run: Path,
    samples: Samples,
    indices: Int64[np.ndarray, " m"],
    swaps: tuple[tuple[int, str, str], ...],
    batch_size: int = 32,
    device: str = "cpu",
    source: SaliencySource = MEAN,
    boxes: Annotator | None = None,
) -> Records:
    """Records of one run on held-out frames.

    Args:
        run: folder of a finished run.
        samples: held-out samples at the policy's image size and chunk.
        indices: which of them.
        swaps: see `la_reconvla.sim.policies.swapped`; without any the view of a wrong instruction is left out.
        batch_size: samples a forward pass.
        device: where the policy runs.
        source: what the arm's mask follows.
        boxes: of the target, for demonstrations without instance masks.

    Returns:
        For each view, one record per frame; maps under the true view only. Up to `HIDING` frames also hold what hiding
        things does. Demonstrations without instance masks (LIBERO's own files) give action errors only or, with boxes,
        also overlaps with the target; phases of an episode need the masks.

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
    if samples.inputs != config.inputs:
        raise UserError(
            f"{run} takes {config.inputs}, the held-out samples have {samples.inputs}: make them with the run's"
        )
    table = {(task, true): wrong for task, true, wrong in swaps}
    hiding = set(indices[spread_indices(len(indices), HIDING)].tolist())
    masked = bool(samples.demonstrations.episodes[0].instance_names)
    located = masked or boxes is not None
    phase = {episode.name: phases(episode) for episode in samples.demonstrations.episodes if masked}
    views = VIEWS if table else VIEWS[:2]
    records: Records = {view: [] for view in views}
    for part in np.array_split(indices, max(1, -(-len(indices) // batch_size))):
        batch = to_device(samples.batch(part), torch.device(device), config.blind)
        found = _errors(policy, config.seed, samples, part, batch, table)
        if located:
            masks = part_masks(samples, part, boxes)
            hidden = _hidden(policy, samples, part, masks, hiding, device) if not config.blind else {}
            maps = _maps(policy, batch, [record.task for record in found["true"]], table, masks, source)
            found["true"] = [
                replace(
                    record,
                    phase=phase[record.episode][record.frame] if masked else None,
                    mean_map=mean,
                    arm_map=own,
                    maps=overlaps,
                    hidden=hidden.get(int(index), {}),
                )
                for record, index, (mean, own, overlaps) in zip(found["true"], part, maps, strict=True)
            ]
        for view in views:
            records[view] += found[view]
    return records


def _errors(
    policy: Policy,
    seed: int,
    samples: Samples,
    part: Int64[np.ndarray, " b"],
    batch: Batch,
    table: Mapping[tuple[int, str], str],
) -> Records:
    """Records of a batch under every view, with nothing but the action error."""
    origins = [samples.origin(int(index)) for index in part]
    tasks = [episode.task or 0 for episode, _ in origins]
    views = VIEWS if table else VIEWS[:2]
    errors = {}
    for view in views:  # each begins with the same noise
        streams = [stream_of(seed, episode.name, step) for episode, step in origins]
        errors[view] = action_errors(policy, view_of(batch, view, tasks, table), streams)
    return {
        view: [
            FrameRecord(seed, task, episode.scene, episode.name, step, float(error))
            for (episode, step), task, error in zip(origins, tasks, errors[view], strict=True)
        ]
        for view in views
    }


def _maps(
    policy: Policy,
    batch: Batch,
    tasks: list[int],
    table: Mapping[tuple[int, str], str],
    masks: Bool[np.ndarray, "b 3 H W"],
    source: SaliencySource,
) -> Iterator[tuple[FrameMap, FrameMap | None, MapOverlaps]]:
    """For each frame the mean map, the arm's if that is another, and the controls."""
    coverage = part_patches(masks, policy.backbone.grid)
    wrong = view_of(batch, "wrong_instruction", tasks, table) if table else None
    found = measure_sources(policy, batch, wrong, coverage, (MEAN, source))
    own = found[source] if source != MEAN else [None] * len(masks)
    told = sorted({true for _, true in table})
    yield from zip(found[MEAN], own, controlled(policy, batch, told, coverage), strict=True)


def _hidden(
    policy: Policy,
    samples: Samples,
    part: Int64[np.ndarray, " b"],
    masks: Bool[np.ndarray, "b 3 H W"],
    hiding: set[int],
    device: str,
) -> dict[int, dict[MapPart, Occlusion]]:
    """What hiding things does on those samples of the batch that are chosen for it, by number of the sample."""
    chosen = np.array([int(index) in hiding for index in part])
    if not chosen.any():
        return {}
    some = to_device(samples.batch(part[chosen]), torch.device(device), blind=False)
    # The same boxes for every policy, however frames are divided into batches.
    draws = [np.random.default_rng(derive(0, f"occlusion/{index}")) for index in part[chosen]]
    effects = causal.effects(policy, some, part_boxes(masks[chosen]), draws)
    return {} if effects is None else dict(zip(part[chosen].tolist(), effects, strict=True))


@torch.no_grad()
def controlled(
    policy: Policy, batch: Batch, instructions: Sequence[str], coverage: Float[np.ndarray, "b 3 n"]
) -> list[MapOverlaps]:
    """Overlap of the policy's mean map with each thing, beside four controls that cannot follow the instruction.

    ``uniform`` is a constant map, ``centre`` a Gaussian about the middle, ``mean_map`` the mean of the policy's own
    maps of this picture under the instructions tried, ``shuffled`` the mean score of its maps under the others of them.

    Args:
        policy: whose maps.
        batch: the frames.
        instructions: of the study; `INSTRUCTIONS` at most are tried, those of the batch first. With one only nothing
            can be shuffled.
        coverage: share of each patch on each of `PARTS`.

    Returns:
        For each frame, thing and kind of map the overlap, five digits after the point.
    """

    def look(texts: list[str]) -> Float[np.ndarray, "b n"]:
        return policy.look(replace(batch.inputs, instructions=texts)).double().cpu().numpy()

    own, count = batch.instructions, len(batch.instructions)
    shown = list(dict.fromkeys([*own, *instructions]))[: max(INSTRUCTIONS, len(set(own)))]
    looks = {text: look([text] * count) for text in shown}
    others = [[text for text in shown if text != true] for true in own]
    kinds: dict[MapKind, list[Float[np.ndarray, "b n"]]] = {
        "policy": [np.stack([looks[true][row] for row, true in enumerate(own)])],
        "uniform": [grounding.uniform(count, policy.backbone.grid)],
        "centre": [grounding.centre_prior(count, policy.backbone.grid)],
        "mean_map": [np.mean(list(looks.values()), axis=0)],
        "shuffled": [
            np.stack([looks[other[turn]][row] for row, other in enumerate(others)]) for turn in range(len(shown) - 1)
        ],
    }
    result: list[MapOverlaps] = [{part: {} for part in PARTS} for _ in own]
    for column, part in enumerate(PARTS):
        for kind, maps in kinds.items():
            if maps:
                overlaps = grounding.averaged([grounding.measure(one, coverage[:, column]) for one in maps])
                for row, overlap in zip(result, overlaps, strict=True):
                    row[part][kind] = overlap.rounded()
    return result


def watched(run: Path, coverage: Float[np.ndarray, "m n"]) -> tuple[Watched, ...]:
    """How the maps of a training changed from check to check, from the files of `training.held_out.save_looks`.

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
    wrong: Batch | None,
    coverage: Float[np.ndarray, "b 3 n"],
    sources: Iterable[SaliencySource],
) -> dict[SaliencySource, list[FrameMap]]:
    """Grounding of the maps of several sources on one batch; one pass of the backbone for each kind of rows and view.

    Args:
        policy: whose attention; and the state of sources that learn.
        batch: the frames.
        wrong: the same under another instruction; None if there is only one, then no map is compared with another's.
        coverage: share of each patch on each of `PARTS`.
        sources: which maps; equal ones are measured once.

    Returns:
        For each source one map per frame.
    """
    chosen = dict.fromkeys(sources)
    kinds: tuple[AttentionRows, ...] = ("instruction", "actions")
    views = (batch,) if wrong is None else (batch, wrong)
    features = {
        rows: [policy.features(shown, attention=rows) for shown in views]
        for rows in kinds
        if any(source.attention_rows == rows for source in chosen)
    }
    found: dict[SaliencySource, list[FrameMap]] = {}
    for source in chosen:
        looks = [source(each).cpu().numpy() for each in features[source.attention_rows]]
        target, destination = (grounding.measure(looks[0], coverage[:, column]).frames() for column in (0, 1))
        aid = [None] * len(target) if wrong is None else grounding.instruction_difference(*looks).tolist()
        channel = features[source.attention_rows][0].channel
        found[source] = [FrameMap(source.label, channel, *each) for each in zip(target, destination, aid, strict=True)]
    return found
