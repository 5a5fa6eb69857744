"""Writes demonstration files: recordings, and files merged from one episode each or split into them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, UInt8

from la_reconvla.data.hdf5_layout import PARTS, episode_groups, opened
from la_reconvla.data.starts import Start
from la_reconvla.robot import Quality
from la_reconvla.storage import atomic_write

COMPRESSION = {"compression": "gzip", "compression_opts": 1}


@dataclass(frozen=True)
class FileHeader:
    """What all episodes of one file share.

    Attributes:
        suite: LIBERO suite.
        task: index of the task in its suite.
        name: name of the task; the file is called ``<name>_demo.hdf5``.
        language: the task's instruction, for readers that know one instruction per file.
        bddl_file: path of the task's description below LIBERO's ``bddl_files``.
        bddl_content: the description itself.
        env_args: how to build the simulator, as LIBERO's ``env_args`` (JSON).
        problem: LIBERO's name of the problem class, for example ``libero_tabletop_manipulation``.
        quality: render quality of the pictures.
        image_size: height and width of the images in pixels.
        frame_stride: control steps from one picture to the next.
    """

    suite: str
    task: int
    name: str
    language: str
    bddl_file: str
    bddl_content: str
    env_args: str
    problem: str
    quality: Quality
    image_size: int
    frame_stride: int


@dataclass(frozen=True, eq=False)
class Recording:
    """One successful episode, ready to be written. Pictures and maps are in the public convention (upright).

    Attributes:
        start: where the episode began.
        actions: clean labels in [-1, 1].
        executed: what was really executed: labels plus noise.
        states: flattened MuJoCo state before each action.
        robot_states: finger positions (m), end effector position (m) and quaternion (xyzw).
        proprio: end effector position (m), orientation (axis-angle, rad), finger positions (m).
        joints: joint angles of the arm (rad).
        frames: agentview pictures at steps 0, s, 2s, ...
        wrist: wrist pictures at the same steps, or None.
        instances: instance maps at the same steps, or None.
        instance_names: names of the numbers 1, 2, ... of `instances`.
        model_xml: the compiled scene.
        success_step: number of steps after which the goal first held.
        noise: standard deviation of the action noise.
        seed: seed of the action noise.
        first: flattened MuJoCo state of the start, where another policy acted before; None where ``states[0]`` is it.
        parts: as `la_reconvla.data.demonstrations.Episode.parts`.
    """

    start: Start
    actions: Float[np.ndarray, "T 7"]
    executed: Float[np.ndarray, "T 7"]
    states: Float[np.ndarray, "T s"]
    robot_states: Float[np.ndarray, "T 9"]
    proprio: Float[np.ndarray, "T 8"]
    joints: Float[np.ndarray, "T 7"]
    frames: UInt8[np.ndarray, "F H W 3"]
    wrist: UInt8[np.ndarray, "F H W 3"] | None
    instances: UInt8[np.ndarray, "F H W"] | None
    instance_names: tuple[str, ...]
    model_xml: str
    success_step: int
    noise: float
    seed: int
    first: Float[np.ndarray, " s"] | None = None
    parts: tuple[tuple[int, str, str], ...] = ()


def write_file(path: Path, header: FileHeader, recordings: Sequence[Recording]) -> None:
    """Write a demonstration file, atomically.

    Raises:
        UserError: the disk is full.
    """
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        _write_header(data, header)
        for number, recording in enumerate(recordings):
            _write_episode(data.create_group(f"demo_{number}"), recording)
        write_totals(data)


def merge_files(shards: Sequence[Path], path: Path) -> None:
    """Write one file with the episodes of `shards` in their order (atomically; compressed pictures are not touched).

    Args:
        shards: files of one task, at least one.
        path: the file to write; replaced if it exists.
    """
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        data, number = file.create_group("data"), 0
        for shard in shards:
            with opened(shard) as source:
                group = source["data"]
                data.attrs.update(group.attrs)
                for name in episode_groups(group):
                    source.copy(group[name], data, f"demo_{number}")
                    number += 1
        write_totals(data)


def split_file(path: Path, shards: Sequence[Path]) -> None:
    """Write a file for each episode of one file (each atomically); `merge_files` makes the same episodes of them again.

    Args:
        path: the file, which stays as it is.
        shards: the files to write, as many as there are episodes, in their order.
    """
    with opened(path) as source:
        names = episode_groups(source["data"])
    for name, shard in zip(names, shards, strict=True):
        with atomic_write(shard) as temporary, h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            with opened(path) as source:
                data.attrs.update(source["data"].attrs)
                source.copy(source["data"][name], data, "demo_0")
            write_totals(data)


def _write_header(data: Any, header: FileHeader) -> None:
    problem = {
        "problem_name": header.problem,
        "domain_name": "robosuite",
        "language_instruction": header.language,
    }
    data.attrs.update(
        {
            "bddl_file_name": f"libero/libero/bddl_files/{header.bddl_file}",
            "bddl_file_content": header.bddl_content,
            "env_args": header.env_args,
            "env_name": header.problem.title(),
            "problem_info": json.dumps(problem),
            "macros_image_convention": "opengl",
            "tag": "libero-v1",
            "suite": header.suite,
            "task_index": header.task,
            "task_name": header.name,
            "quality": header.quality,
            "image_size": header.image_size,
            "frame_stride": header.frame_stride,
        }
    )


def _write_episode(group: Any, recording: Recording) -> None:
    length = len(recording.actions)
    last = np.zeros(length, dtype=np.uint8)
    last[-1] = 1
    position, orientation, fingers = np.split(recording.proprio.astype(np.float64), (3, 6), axis=1)
    group["actions"] = recording.actions.astype(np.float64)
    group["executed_actions"] = recording.executed.astype(np.float64)
    group["robot_states"] = recording.robot_states
    group["rewards"] = group["dones"] = last
    group.create_dataset("states", data=recording.states, **COMPRESSION)
    observation = group.create_group("obs")
    observation["ee_pos"], observation["ee_ori"] = position, orientation
    observation["ee_states"] = np.concatenate([position, orientation], axis=1)
    observation["gripper_states"] = fingers
    observation["joint_states"] = recording.joints
    write_pictures(observation, "agentview_rgb", recording.frames)
    if recording.wrist is not None:
        write_pictures(observation, "eye_in_hand_rgb", recording.wrist)
    if recording.instances is not None:
        write_pictures(group.create_group("instances"), "map", recording.instances, recording.instance_names)
    start = recording.start
    group.attrs.update(
        {
            "num_samples": length,
            "model_file": recording.model_xml,
            "init_state": recording.states[0] if recording.first is None else recording.first,
            "start_id": start.id,
            "placement": start.placement,
            "split": start.split,
            "start_index": start.index,
            "start_seed": start.seed,
            "instruction": start.instruction,
            "target": start.target,
            "destination": start.destination,
            "success_step": recording.success_step,
            "noise": recording.noise,
            "seed": recording.seed,
        }
    )
    if recording.parts:
        group.attrs[PARTS] = json.dumps(recording.parts)


def write_pictures(
    group: Any, name: str, pictures: UInt8[np.ndarray, "F H W ..."], numbered: Sequence[str] | None = None
) -> None:
    """Write upright pictures or maps as a dataset of `group`, upside down, as LIBERO stores them.

    One chunk per picture, so that reading one decompresses one.

    Args:
        group: an HDF5 group.
        name: of the dataset.
        pictures: uint8.
        numbered: of maps: what the numbers 1, 2, ... stand for.
    """
    upside_down = np.ascontiguousarray(pictures[:, ::-1, ::-1])
    group.create_dataset(name, data=upside_down, chunks=(1, *pictures.shape[1:]), **COMPRESSION)
    if numbered is not None:
        group.attrs["names"] = json.dumps(numbered)


def write_totals(data: Any) -> None:
    """Say how many episodes and steps the group ``data`` holds."""
    data.attrs["num_demos"] = len(data)
    data.attrs["total"] = sum(len(data[name]["actions"]) for name in data)
