"""The files that `reliability` damages, and all that this package reads of each."""

from __future__ import annotations

import io
import json
import shutil
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import h5py
import numpy as np
from PIL import Image

from la_reconvla import layout
from la_reconvla.analysis.declaration import DECLARED
from la_reconvla.analysis.frames import HeldOut
from la_reconvla.analysis.results import Results
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.conditions import CONDITIONS
from la_reconvla.data.boxes import annotator
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.image_files import read_picture
from la_reconvla.data.instances import instance_number
from la_reconvla.data.lerobot_layout import INFO, PictureKind
from la_reconvla.data.lerobot_writer import Contents, LeRobotWriter
from la_reconvla.data.scenes import Scenes
from la_reconvla.episodes import EpisodeRecord, read_episodes
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.storage import append_jsonl, read_json, write_json
from la_reconvla.study.begun import Begun, read_begun
from la_reconvla.study.heldout import read_held_out
from la_reconvla.study.requirements import require_declared
from la_reconvla.study.results import read_results
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig, kept, load_policy
from la_reconvla.training.tensors import save_tensors


def example(kind: Any) -> Any:
    """A value of a type, every field of it filled."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{f.name: example(hints[f.name]) for f in fields(kind)})
    if origin in (Union, types.UnionType):
        return example(next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        return arguments[0]
    if origin is tuple:
        return tuple(example(arguments[0]) for _ in range(2))
    if origin in (dict, Mapping):
        key, value = arguments
        return {example(key): example(value)}
    return {str: "text", int: 3, float: 0.5, bool: True}.get(kind, 1)


# ---------------------------------------------------------------- demonstrations and boxes


def _demonstration(path: Path, encoded: bool, names: Mapping[str, str] = {}) -> None:
    rng, length = np.random.default_rng(0), 4
    pictures = rng.integers(0, 256, (length, 4, 4, 3), dtype=np.uint8)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if not names:
            data.attrs["problem_info"] = json.dumps({"language_instruction": ["pick", "up the bowl"]})
            data.attrs["bddl_file_name"] = "x/libero_spatial/pick_up_the_bowl.bddl"
            data.attrs.update({"task_index": 0, "quality": "fast", "frame_stride": 1})
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = rng.uniform(-1, 1, (length, 7))
            demo["states"] = rng.normal(size=(length, 5))
            demo.attrs.update({"init_state": np.zeros(5), "target": "bowl_1", "start_index": 3, "noise": 0.1})
            demo[names.get("hand", "obs/ee_states")] = rng.normal(size=(length, 3 if names else 6))
            if names:
                demo["obs/robot0_eef_quat"] = np.tile([0.0, 0.0, 0.0, 1.0], (length, 1))
            demo[names.get("fingers", "obs/gripper_states")] = rng.normal(size=(length, 2))
            demo["instances/map"] = rng.integers(0, 2, (length, 4, 4), dtype=np.uint8)
            demo["instances"].attrs["names"] = '["bowl_1"]'
            for name in (names.get("view", "obs/agentview_rgb"), names.get("wrist", "obs/eye_in_hand_rgb")):
                if encoded:
                    rows = demo.create_dataset(name, (length,), h5py.vlen_dtype(np.uint8))
                    for row, picture in enumerate(pictures):
                        rows[row] = np.frombuffer(_png(picture), np.uint8)
                else:
                    demo.create_dataset(name, data=pictures, chunks=(1, 4, 4, 3), compression="gzip")


def make_demonstrations(folder: Path) -> None:
    """One in LIBERO's layout."""
    _demonstration(folder / "pick_up_the_bowl_demo.hdf5", encoded=False)


def make_others(folder: Path) -> None:
    """One with robomimic's names and encoded pictures."""
    names = {
        "view": "obs/agentview_image",
        "wrist": "obs/robot0_eye_in_hand_image",
        "hand": "obs/robot0_eef_pos",
        "fingers": "obs/robot0_gripper_qpos",
    }
    _demonstration(folder / "pick_up_the_bowl_demo.hdf5", encoded=True, names=names)


def read_demonstrations(folder: Path) -> None:
    """What training, evaluation and annotation read."""
    found = open_demonstrations(folder)
    assert len(found.hash) == 64
    for episode in found.episodes:
        length = len(episode.actions)
        assert episode.frames().shape == (len(episode.frame_steps), *(episode.image_size,) * 2, 3)
        assert np.isfinite(episode.actions).all()
        assert (np.isfinite(episode.proprio()).all(), len(episode.proprio())) == (True, length)
        assert episode.wrist().dtype == np.uint8
        assert episode.executed().shape == (length, 7)
        assert len(episode.states()) == length
        assert episode.first_state().ndim == 1
        if episode.instance_names:
            assert len(episode.instances()) == len(episode.frame_steps)
        if episode.target:
            instance_number(episode, "target")
        assert episode.scene
        episode.instruction.encode()


def make_lerobot(folder: Path, pictures: PictureKind = "av1") -> None:
    """Three episodes, two cameras."""
    rng, size, length = np.random.default_rng(0), (64, 64), 5
    contents = Contents(10, {"top": size, "wrist": size}, ("x", "grip"), ("a", "b", "c"), pictures)
    writer = LeRobotWriter(folder, contents)
    for number in range(3):
        actions = np.stack([rng.normal(size=length), np.resize([-1, 1], length)], axis=1).astype(np.float32)
        shown = rng.integers(0, 256, (length, *size, 3), dtype=np.uint8)
        state = rng.normal(size=(length, 3)).astype(np.float32)
        writer.add(("push the block", "open it")[number % 2], actions, state, lambda _, shown=shown: iter(shown))
    writer.finish({"orientation": "mirrored", "action_kinds": ["continuous", "binary"], "quality": "fast"})


def make_lerobot_before(folder: Path) -> None:
    """The same with pictures, its lists as version 2.1 has them."""
    make_lerobot(folder, "png")
    info = {**read_json(folder / INFO), "codebase_version": "v2.1", "data_path": "data/chunk-000/file-000.parquet"}
    write_json(folder / INFO, info)
    append_jsonl(folder / "meta/episodes.jsonl", *({"episode_index": i, "length": 5} for i in range(3)))
    tasks = ("push the block", "open it")
    append_jsonl(folder / "meta/tasks.jsonl", *({"task_index": i, "task": text} for i, text in enumerate(tasks)))
    shutil.rmtree(folder / "meta/episodes")
    (folder / "meta/tasks.parquet").unlink()


def read_lerobot(folder: Path) -> None:
    """What training and conversion read."""
    found = open_demonstrations(folder)
    assert len(found.hash) == 64
    for episode in found.episodes:
        length = len(episode.actions)
        for camera in found.cameras:
            assert episode.pictures(camera).shape == (len(episode.frame_steps), *episode.picture_size(camera), 3)
        assert np.isfinite(episode.actions).all()
        assert (np.isfinite(episode.proprio()).all(), len(episode.proprio())) == (True, length)
        assert episode.executed().shape == (length, len(found.space))
        assert episode.scene
        episode.instruction.encode()


def make_boxes(folder: Path) -> None:
    """Boxes of the demonstrations beside them."""
    make_demonstrations(folder)
    file = "pick_up_the_bowl_demo.hdf5"
    lines = [{"episode": f"{file}/demo_{d}", "step": s, "box": [0.1, 0.2, 0.5, 0.75]} for d in (0, 1) for s in range(4)]
    lines[2]["box"] = None
    lines[3]["score"] = 0.5
    append_jsonl(folder / "boxes.jsonl", *lines)


def read_boxes(folder: Path) -> None:
    """All boxes, as training takes them."""
    boxes = annotator(str(folder / "boxes.jsonl"))
    for episode in open_demonstrations(folder).episodes:
        assert np.isfinite(boxes(episode)).all()


# ---------------------------------------------------------------- runs and scenes


def make_run(folder: Path) -> None:
    """A policy of a few thousand weights with a decoder."""
    backbone = SmallPaliGemma(
        image_size=16, patch=8, width=8, vision_layers=1, language_layers=1, attention_heads=2, kv_heads=1, chunk=1,
        saliency_layers=1,
    )  # fmt: skip
    arm = CONDITIONS["C4"].with_reconstruction_head(MAEDecoder(depth=1, width=8, attention_heads=2), None)  # pyright: ignore
    run = PolicyConfig.of(
        arm, seed=0, backbone=backbone, bins=ActionBins((-1.0,) * 7, (1.0,) * 7), quality="fast", image_size=16,
        data_hash="", train_starts=("libero_spatial/0/wide/train/3",),
    )  # fmt: skip
    run.save(folder)
    save_tensors(folder / WEIGHTS, kept(run.build()), step=3)


def make_scenes(folder: Path) -> None:
    """A shard of two scenes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    scenes = Scenes(
        ("table", "floor"), ("bowl_1", "plate_1"), images, np.ones((2, 4, 4), np.uint8),
        rng.normal(size=(2, 2, 2)).astype(np.float32), np.full((2, 2), 8, np.int32),
    )  # fmt: skip
    scenes.save(folder / "shard.safetensors")


def read_scenes(folder: Path) -> None:
    """A shard, joined as the whole set is."""
    Scenes.join([Scenes.load(folder / "shard.safetensors")])


# ---------------------------------------------------------------- records


def make_results(folder: Path) -> None:
    """Every field of the results filled."""
    write_json(folder / layout.RESULTS, example(Results))


def make_episodes(folder: Path) -> None:
    """Three episodes."""
    append_jsonl(folder / layout.EPISODES, *(example(EpisodeRecord).to_json() for _ in range(3)))


def make_held_out(folder: Path) -> None:
    """Records of held-out frames."""
    write_json(folder / layout.HELD_OUT, example(HeldOut).to_json())


def make_begun(folder: Path) -> None:
    """A study that has begun, with its declaration."""
    values = {**vars(example(Begun)), "hypotheses": DECLARED.text, "hypotheses_hash": DECLARED.hash}
    write_json(folder / layout.STUDY, {"schema": layout.SCHEMA, **values})


def read_study(folder: Path) -> None:
    """What a study that goes on takes from its file."""
    path = folder / layout.STUDY
    require_declared(vars(read_begun(path)), None, path)


# ---------------------------------------------------------------- pictures


def _png(picture: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind)
    return buffer.getvalue()


def make_pictures(folder: Path) -> None:
    """A PNG of 16 bits, one with transparency, a JPEG with EXIF data."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 65536, (9, 7), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)).save(folder / "clear.png")
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / "turned.jpg", exif=exif)


def read_pictures(folder: Path) -> None:
    """All of them; the first that is refused is the answer."""
    for path in sorted(folder.iterdir()):
        picture = read_picture(path)
        assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)


def read_run(folder: Path) -> None:
    """A policy, as evaluation opens it."""
    load_policy(folder)


def read_result(folder: Path) -> None:
    """Results, as the report opens them."""
    found = read_results(folder / layout.RESULTS)
    assert found.by_key is not None


def read_records(folder: Path) -> None:
    """Episodes, and what is computed of each."""
    for record in read_episodes(folder):
        record.value("tsr"), record.value("smallest_distance")


def read_frames(folder: Path) -> None:
    """Records of held-out frames."""
    read_held_out(folder)
