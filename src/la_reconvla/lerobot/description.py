"""What a policy is, from what LeRobot is told and from the data set it trains on. Needs no LeRobot.

A policy is described by `la_reconvla.training.checkpoint.PolicyConfig`, here as in a run of ours, so that no number is
translated. LeRobot's configuration keeps it whole, bins included, in its field ``description``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from la_reconvla.conditions import Condition, condition
from la_reconvla.data.lerobot_info import action_space, camera_names, camera_sizes, read_info, read_ours
from la_reconvla.data.lerobot_layout import ACTION, IMAGES, OURS, STATE, needed
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.variants.autoregressive import DECODINGS
from la_reconvla.robot import LIBERO_ACTIONS, LIBERO_CAMERAS, ActionKind, ActionSpace, Inputs, Orientation, Standard
from la_reconvla.serving.lerobot_folder import LIBERO_KEYS
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.study.requirements import pinned_config
from la_reconvla.training.checkpoint import PolicyConfig


@dataclass(frozen=True, eq=False)
class Recorded:
    """What the policy's description takes from a data set.

    Attributes:
        actions: float64 [N a], all of them, in the units of the data set.
        space: what they are.
        state: float32 [N p]; None where there is none.
        cameras: rows of their pictures by their names, in the order of the data set.
        said: content of ``meta/la_reconvla.json``.
    """

    actions: Float[np.ndarray, "N a"]
    space: ActionSpace
    state: Float32[np.ndarray, "N p"] | None
    cameras: Mapping[str, int]
    said: Mapping[str, Any]


def read_recorded(root: Path) -> Recorded:
    """The columns of numbers of a LeRobotDataset, without its pictures; as `la_reconvla.data.lerobot` reads it.

    Two values other than -1 and 1 are a continuous dimension here, as LeRobot gives them in the units of the data set.

    Raises:
        UserError: a file or a column is missing or damaged.
    """
    parquet = needed("pyarrow.parquet")
    features, said = read_info(root)["features"], read_ours(root)
    sizes = camera_sizes(root, features)
    paths = sorted((root / "data").rglob("*.parquet"))
    if not paths:
        raise UserError(f"{root} has no data/*/*.parquet: its bins cannot be computed; fetch it whole")
    columns = [name for name in (ACTION, STATE) if name in features]
    tables = [parquet.read_table(path, columns=columns) for path in paths]

    def column(name: str) -> np.ndarray:
        return np.concatenate([np.stack(t[name].to_numpy()) for t in tables if len(t)])

    actions = column(ACTION).astype(np.float64)
    space, others = action_space(root, features, actions, said)
    kept: tuple[ActionKind, ...] = tuple("continuous" if n in others else kind for n, kind in enumerate(space.kinds))
    return Recorded(
        actions,
        ActionSpace(space.names, kept),
        column(STATE).astype(np.float32) if STATE in features else None,
        {name: rows for name, (rows, _) in zip(camera_names(tuple(sizes)), sizes.values(), strict=True)},
        said,
    )


def chosen(name: str, changes: Mapping[str, Any]) -> StudyConfig:
    """The preset of this name with the same changes that the command ``train`` takes, and any field of its backbone.

    Raises:
        UserError: for a preset or a change that there is not.
    """
    try:
        return preset(name).changed(**{key: tuple(v) if isinstance(v, list) else v for key, v in changes.items()})
    except TypeError as error:
        raise UserError(f"policy.changes: {error}; they are named as the options of `la-reconvla train`") from error


def describe(
    arm: str, seed: int, study: StudyConfig, orientation: Orientation | None, recorded: Recorded
) -> PolicyConfig:
    """The policy that training begins with.

    Quantiles are those of the column: LeRobot 0.6.1 writes the mean of the episodes' quantiles into ``stats.json``.

    Args:
        arm: id of the condition.
        seed: of weights and masks.
        study: source of backbone, heads and labels.
        orientation: how the pictures stand; None for what the data set says, or upright.
        recorded: the data set.

    Raises:
        UserError: the arm needs boxes, which the format has not; an average of weights is asked for; pictures are
            repeated between steps; or the data lack a camera or a state.
    """
    trained = study.arm(arm)
    if not trained.annotation_free:
        raise UserError(
            f"{arm} is told where the target is, and a LeRobotDataset has no boxes: train it with `la-reconvla train`"
        )
    if (stride := recorded.said.get("frame_stride", 1)) > 1:
        raise UserError(
            f"frame_stride is {stride} in {OURS}: LeRobot takes a picture for that of the {stride - 1} steps after it "
            "too. Train it with `la-reconvla train`, or record or draw every frame (`data collect`, `data render`: "
            "--frame-stride 1) and convert that"
        )
    if study.train.ema:
        raise UserError("policy.changes: ema is for `la-reconvla train`, LeRobot keeps no average: leave it out")
    study = pinned_config(study)
    backbone, cameras = study.backbone, study.cameras or tuple(recorded.cameras)[:2]
    if lacking := [name for name in cameras if name not in recorded.cameras]:
        raise UserError(f"no camera '{lacking[0]}' in the data set: it has {', '.join(recorded.cameras)}")
    if len(cameras) < 1 + backbone.wrist:
        raise UserError(f"a second camera was asked for (wrist), and the data set has {cameras[0]} only")
    kind, standard = backbone.proprio, None
    if kind != "none":
        if recorded.state is None:
            raise UserError(f"proprio is '{kind}', and the data set has no {STATE}: leave it out")
        if not recorded.said.get("libero_state"):
            if kind == "gripper":
                raise UserError(
                    "proprio 'gripper' is for LIBERO's state (libero_state in meta/la_reconvla.json): take 'all'"
                )
            standard = Standard.of(recorded.state)
            study = study.changed(proprio=recorded.state.shape[1])
    space = recorded.space
    if recorded.said.get("libero_state") and space.kinds == LIBERO_ACTIONS.kinds:
        space = LIBERO_ACTIONS  # whatever the data set calls them: weights that acted in LIBERO go on from there
    edges = np.quantile(recorded.actions, DECODINGS[study.decoding].reach, axis=0)
    stands = orientation or recorded.said.get("orientation", "upright")
    return PolicyConfig.of(
        trained,
        seed=seed,
        backbone=study.backbone,
        bins=ActionBins.from_quantiles(edges[0], edges[1], space, spread=study.spread),
        quality=recorded.said.get("quality", "official"),
        image_size=recorded.cameras[cameras[0]],
        data_hash=hashlib.sha256(recorded.actions.tobytes()).hexdigest(),
        train_starts=(),
        decoding=study.decoding,
        inputs=Inputs(tuple(cameras), stands, study.fit, standard),
    )


def arm_of(policy: PolicyConfig) -> Condition:
    """The arm that a policy was made for, with a reconstruction head of its size.

    Raises:
        UserError: if it is not known here; one's own comes by LeRobot's ``--policy.discover_packages_path``.
    """
    heads = () if policy.reconstruction_head is None else (policy.reconstruction_head,)
    return condition(policy.condition).with_reconstruction_head(*heads)


def camera_keys(cameras: Sequence[str], given: Iterable[str] = ()) -> list[str]:
    """LeRobot's names of a policy's cameras: those among `given` that are called so, else the usual ones."""
    keys = tuple(given)
    called = dict(zip(camera_names(keys), keys, strict=True))
    names = LIBERO_KEYS[: len(cameras)] if tuple(cameras) == LIBERO_CAMERAS[: len(cameras)] else cameras
    usual = [name if name.startswith("observation.") else IMAGES + name for name in names]
    return [called.get(camera, key) for camera, key in zip(cameras, usual, strict=True)]


def features_of(policy: PolicyConfig, given: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """LeRobot's ``input_features`` and ``output_features`` of a policy; `given` as of `camera_keys`."""
    cameras = camera_keys(policy.inputs.cameras, given)[: 1 + policy.backbone.wrist]
    shape = [3, policy.image_size, policy.image_size]
    inputs: dict[str, Any] = {key: {"type": "VISUAL", "shape": shape} for key in cameras}
    if policy.backbone.proprio != "none":
        kind = policy.backbone.proprio
        inputs[STATE] = {"type": "STATE", "shape": [kind if isinstance(kind, int) else 8]}
    return inputs, {ACTION: {"type": "ACTION", "shape": [len(policy.bins.space)]}}
