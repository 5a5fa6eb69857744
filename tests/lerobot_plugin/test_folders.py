"""What LeRobot's files say, which of them are not loaded, and runs that go there and come back: without LeRobot."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from lerobot_folders import change, make_folder, make_run
from safetensors.torch import load_file

from helpers import TINY
from la_reconvla.errors import UserError
from la_reconvla.lerobot.sharing import from_lerobot, to_lerobot
from la_reconvla.robot import Inputs, Standard
from la_reconvla.serving.lerobot_folder import LeRobotFolder, is_lerobot
from la_reconvla.serving.lerobot_policy import LeRobot
from la_reconvla.training.checkpoint import WEIGHTS, load_policy

SEEING = replace(TINY, wrist=True, proprio="all")


def test_a_run_comes_back_bit_by_bit(tmp_path: Path) -> None:
    config = make_run(tmp_path / "run")
    to_lerobot(tmp_path / "run", tmp_path / "there")
    from_lerobot(tmp_path / "there", tmp_path / "back")
    assert load_policy(tmp_path / "back")[1] == config
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("run", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    there = load_file(tmp_path / "there" / WEIGHTS)
    assert {f"policy.{name}" for name in before} | {"step"} == set(there)
    assert int(there["step"]) == 7
    with pytest.raises(UserError, match="holds a policy already"):
        to_lerobot(tmp_path / "run", tmp_path / "there")


def test_what_a_folder_says(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "one", SEEING, quality="official", image_size=64)
    folder = LeRobotFolder.read(path)
    assert folder.cameras() == {"observation.images.image": False, "observation.images.image2": True}
    assert (folder.type, folder.image_size, folder.takes_state) == ("la_reconvla", 64, True)
    settings = LeRobot(path).settings(max_steps=3)
    assert (settings.image_size, settings.wrist, settings.proprio) == (64, True, True)
    assert (settings.quality, settings.max_steps) == ("official", 3)
    alone = LeRobot(make_folder(tmp_path / "two")).settings()
    assert (alone.image_size, alone.wrist, alone.proprio, alone.quality) == (32, False, False, "fast")


def test_cameras_are_named_as_the_world_names_them(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "one", SEEING)
    picture = {"type": "VISUAL", "shape": [3, 48, 64]}
    names = ("camera1", "camera2", "empty_camera_0")
    change(path / "config.json", input_features={f"observation.images.{name}": picture for name in names})
    with pytest.raises(UserError, match="takes a camera 'camera1'"):
        LeRobotFolder.read(path).cameras()
    renames = {
        f"observation.images.{a}": f"observation.images.{b}" for a, b in zip(("image", "image2"), names, strict=False)
    }
    step = {"registry_name": "rename_observations_processor", "config": {"rename_map": renames}}
    change(path / "policy_preprocessor.json", steps=[step])
    folder = LeRobotFolder.read(path)
    assert folder.cameras() == {"observation.images.camera1": False, "observation.images.camera2": True}
    assert (folder.image_size, folder.takes_state) == (256, False)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"type": None}, "it has no 'type'"),
        ("config.json", {"type": "smolvlm"}, "did you mean smolvla"),
        ("config.json", {"type": "groot"}, "unknown type of LeRobot policy"),
        ("config.json", {"use_peft": True}, "no adapter_model.safetensors"),
        ("config.json", {"input_features": {"observation.state": {"type": "STATE"}}}, "is damaged"),
        ("config.json", {"input_features": {"observation.state": {"type": "STATE", "shape": ["a"]}}}, "is damaged"),
        ("policy_preprocessor.json", {"steps": [{"class": "os.system", "config": {}}]}, "names code of its own"),
        ("policy_postprocessor.json", {"steps": ["x"]}, "names code of its own"),
        ("policy_preprocessor.json", {"steps": [{"registry_name": "rename_observations_processor"}]}, "is damaged"),
        ("config.json", {"description": {"inputs": None}}, "describes no policy of this version"),
    ],
)
def test_a_folder_that_is_not_loaded(tmp_path: Path, file: str, fields: dict, message: str) -> None:
    path = make_folder(tmp_path / "one")
    change(path / file, **fields)
    with pytest.raises(UserError, match=message):
        LeRobotFolder.read(path)


def test_a_file_that_holds_something_else_is_damaged(tmp_path: Path) -> None:
    for name in ("policy_preprocessor.json", "policy_postprocessor.json", "config.json"):
        path = make_folder(tmp_path / name.removesuffix(".json"))
        (path / name).write_text("[]", encoding="utf-8")
        with pytest.raises(UserError, match=f"{name} is damaged: not a JSON object"):
            LeRobotFolder.read(path)


@pytest.mark.parametrize("field", ["backbone", "bins", "inputs", "train_starts"])
def test_a_description_without_a_part_is_none(tmp_path: Path, field: str) -> None:
    path = make_folder(tmp_path / "one")
    described = json.loads((path / "config.json").read_text(encoding="utf-8"))["description"]
    change(path / "config.json", description={**described, field: None})
    with pytest.raises(UserError, match=r"describes no policy|NoneType lacks"):
        LeRobotFolder.read(path)


def test_who_is_asked_at_each_step(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "one")
    for fields, expected in (({}, False), ({"n_obs_steps": 2}, True), ({"temporal_ensemble_coeff": 0.01}, True)):
        change(path / "config.json", **{"n_obs_steps": 1, "temporal_ensemble_coeff": None, **fields})
        assert LeRobotFolder.read(path).each_step == expected


def test_a_folder_that_is_another(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "one")
    with pytest.raises(UserError, match="it is a run of la-reconvla: leave 'lerobot:' out"):
        LeRobotFolder.read(tmp_path / "one-run")
    with pytest.raises(UserError, match="no such file"):
        LeRobotFolder.read(tmp_path / "none")
    (tmp_path / "out/checkpoints/last").mkdir(parents=True)
    path.rename(tmp_path / "out/checkpoints/last/pretrained_model")
    with pytest.raises(UserError, match=r"name the policy in it, .*last/pretrained_model"):
        LeRobotFolder.read(tmp_path / "out")
    inside = tmp_path / "out/checkpoints/last/pretrained_model"
    (inside / "model.safetensors").rename(inside / "pytorch_model.bin")
    with pytest.raises(UserError, match="may be pickled"):
        LeRobotFolder.read(inside)
    (inside / "pytorch_model.bin").rename(inside / "model.safetensors")
    (inside / "policy_preprocessor.json").unlink()
    with pytest.raises(UserError, match="migrate_policy_normalization"):
        LeRobotFolder.read(inside)


def test_a_policy_of_another_robot_is_not_rolled_out_in_libero(tmp_path: Path) -> None:
    upright = make_folder(tmp_path / "upright", inputs=Inputs(("image", "image2"), "upright"))
    with pytest.raises(UserError, match="takes pictures that are upright, LIBERO's are mirrored"):
        LeRobot(upright).settings()
    standard = Standard((0.0,) * 5, (1.0,) * 5)
    arm = make_folder(
        tmp_path / "arm", replace(TINY, proprio=5), inputs=Inputs(("image",), "mirrored", "squeeze", standard)
    )
    with pytest.raises(UserError, match=r"'observation.state' is 8 numbers, not \[5\]"):
        LeRobot(arm).settings()
    from_lerobot(arm, tmp_path / "back")
    assert load_policy(tmp_path / "back")[1].inputs.standard == standard


def test_adapters_need_what_they_adapt(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "one")
    change(path / "config.json", use_peft=True)
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "user/name"}), encoding="utf-8")
    with pytest.raises(UserError, match="holds adapters of user/name"):
        LeRobotFolder.read(path)
    below = make_folder(tmp_path / "below")
    change(path / "adapter_config.json", base_model_name_or_path=str(below))
    found = LeRobotFolder.read(path).base()
    assert found is not None
    assert found.path == below
    with pytest.raises(UserError, match="merge them in LeRobot"):
        from_lerobot(path, tmp_path / "back")
    (path / "adapter_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config.json is damaged: not a JSON object"):
        LeRobotFolder.read(path)
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(path)}), encoding="utf-8")
    with pytest.raises(UserError, match="which are adapters too: merge those in LeRobot"):
        LeRobotFolder.read(path)


def test_what_cannot_come_back(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "one")
    one = json.loads((path / "config.json").read_text(encoding="utf-8"))["description"]
    for field, message in (({"type": "act"}, "which no run can hold"), ({"description": None}, "describes no policy")):
        other = make_folder(tmp_path / f"{next(iter(field))}")
        change(other / "config.json", **field)
        with pytest.raises(UserError, match=message):
            from_lerobot(other, tmp_path / "back")
    one["backbone"]["width"] = 64
    change(path / "config.json", description=one)
    with pytest.raises(UserError, match=r"does not fit config.json"):
        from_lerobot(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_without_lerobot_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    path = make_folder(tmp_path / "one")
    with pytest.raises(UserError, match=r"not installed for .*python3.12 -m venv.*pip install -e .*lerobot_policy"):
        LeRobot(path).identity()


def test_how_it_is_named() -> None:
    assert is_lerobot("lerobot:some/folder")
    assert not is_lerobot("ws://lerobot:80")
