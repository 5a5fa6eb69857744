"""What LeRobot does with our policies and environment, and its policies in our simulator: `make test-lerobot`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_folders import SIZE, WORDS, act_folder, make_folder, make_run, written

from helpers import TINY
from la_reconvla.conditions import CONDITIONS
from la_reconvla.contracts import Observation
from la_reconvla.data.samples import GREY
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.lerobot.sharing import from_lerobot, to_lerobot
from la_reconvla.serving.lerobot_policy import LeRobot
from la_reconvla.training.checkpoint import load_policy
from la_reconvla.training.tensors import load_tensors, save_tensors
from la_reconvla.training.trained_policy import Trained

pytest.importorskip("lerobot.policies", reason="LeRobot is not installed: make test-lerobot")
pytestmark = pytest.mark.slow

SMOKE = {"steps": 4, "shift": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("data") / "set")


def configured(**fields: Any) -> Any:
    from lerobot.policies.factory import make_policy_config
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    chosen = {"preset": "smoke", "changes": SMOKE, "orientation": "mirrored", **fields}
    return make_policy_config("la_reconvla", device="cpu", push_to_hub=False, **chosen)


def trained(monkeypatch: pytest.MonkeyPatch, dataset: Path, out: Path, steps: int = 4, **fields: Any) -> Path:
    """By `lerobot-train`; where the policy is."""
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.scripts.lerobot_train import train

    data = DatasetConfig("local/set", root=str(dataset))
    rest = {"steps": steps, "save_freq": 2, "log_freq": 1, "batch_size": 4, "num_workers": 0, "env_eval_freq": 0}
    monkeypatch.setattr("sys.argv", ["lerobot-train"])
    train(TrainPipelineConfig(dataset=data, policy=configured(**fields), output_dir=out, **rest))
    return out / "checkpoints/last/pretrained_model"


@pytest.fixture(scope="module")
def policy_folder(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """C4 after four steps, with both cameras and the state."""
    with pytest.MonkeyPatch.context() as patch:
        changes = {**SMOKE, "wrist": True, "proprio": "all"}
        yield trained(patch, dataset, tmp_path_factory.mktemp("run") / "out", changes=changes)


def loaded(folder: Path) -> tuple[Any, Any, Any]:
    """The policy and what is before and after it."""
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    policy = get_policy_class("la_reconvla").from_pretrained(folder, strict=True)
    return policy, *make_pre_post_processors(policy.config, str(folder))


def pictures(seed: int, size: int = SIZE) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(2)]


def observed(main: np.ndarray, wrist: np.ndarray, words: str, state: np.ndarray) -> dict[str, Any]:
    shown = (torch.from_numpy(one).permute(2, 0, 1).float() / 255 for one in (main, wrist))
    keys = ("observation.images.image", "observation.images.image2")
    return {**dict(zip(keys, shown, strict=True)), "observation.state": torch.from_numpy(state), "task": words}


def test_bins_come_from_the_column_and_not_from_stats(policy_folder: Path, dataset: Path) -> None:
    from lerobot.datasets import LeRobotDataset

    read = LeRobotDataset("local/set", root=dataset)
    column = np.stack([read[index]["action"].numpy() for index in range(len(read))]).astype(np.float64)
    description = json.loads((policy_folder / "config.json").read_text(encoding="utf-8"))["description"]
    np.testing.assert_allclose(description["bins"]["low"], np.quantile(column, 0.01, axis=0))
    stats = json.loads((dataset / "meta/stats.json").read_text(encoding="utf-8"))["action"]["q01"]
    assert np.abs(np.array(stats) - description["bins"]["low"]).max() > 0.2  # why they are not read
    assert description["inputs"]["orientation"] == "mirrored"


def test_a_stopped_training_goes_on_bit_by_bit(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.scripts.lerobot_train import train
    from safetensors.torch import load_file

    before = policy_folder.parents[1]
    shutil.copytree(before / "000002", tmp_path / "checkpoints/000002")
    config = tmp_path / "checkpoints/000002/pretrained_model/train_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**content, "output_dir": str(tmp_path)}), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["lerobot-train", f"--config_path={config}", "--resume=true"])
    train()
    one = load_file(policy_folder / "model.safetensors")
    other = load_file(tmp_path / "checkpoints/000004/pretrained_model/model.safetensors")
    assert int(other["step"]) == 4
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_lerobot_trained_is_a_run(policy_folder: Path, tmp_path: Path) -> None:
    from_lerobot(policy_folder, tmp_path / "run")
    (main, wrist), state = pictures(1), np.linspace(-1, 1, 8, dtype=np.float32)
    mine = Trained(tmp_path / "run").build()
    mine.tell(WORDS[0])
    policy, before, after = loaded(policy_folder)
    found = after(policy.predict_action_chunk(before(observed(main, wrist, WORDS[0], state))))[0]
    np.testing.assert_allclose(found.numpy(), mine.act(Observation(main, WORDS[0], wrist, state)), atol=1e-6)


@pytest.mark.parametrize("size", [32, 64])
def test_our_run_acts_alike_there_and_is_saved_alike(tmp_path: Path, size: int) -> None:
    seeing = replace(TINY, wrist=True, proprio="all")
    folder = make_folder(tmp_path / "there", seeing, image_size=size)
    (main, wrist), state = pictures(2, size), np.linspace(-1, 1, 8, dtype=np.float32)
    mine = Trained(tmp_path / "there-run").build()
    mine.tell(WORDS[1])
    policy, before, after = loaded(folder)
    batch = before(observed(main, wrist, WORDS[1], state))
    expected = mine.act(Observation(main, WORDS[1], wrist, state))
    np.testing.assert_allclose(after(policy.predict_action_chunk(batch))[0].numpy(), expected, atol=1e-6)
    for action in expected:
        np.testing.assert_allclose(after(policy.select_action(batch))[0].numpy(), action, atol=1e-6)
    for part in (policy, before, after):
        part.save_pretrained(tmp_path / "again")
    for name in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        ours, theirs = (json.loads((f / name).read_text(encoding="utf-8")) for f in (folder, tmp_path / "again"))
        assert ours == theirs


@pytest.mark.parametrize("cameras", [("image",), ("images.agentview", "images.eye_in_hand")])
def test_cameras_keep_the_names_that_the_data_give_them(tmp_path: Path, cameras: tuple[str, ...]) -> None:
    from lerobot.datasets import LeRobotDataset
    from lerobot.policies.factory import make_policy

    written(tmp_path / "set", cameras)
    data = LeRobotDataset("local/set", root=tmp_path / "set", delta_timestamps={"action": [0.0, 0.05]})
    changes = {**SMOKE, "chunk": 2, "wrist": len(cameras) == 2}
    policy = make_policy(configured(condition="C1", changes=changes), ds_meta=data.meta)
    assert policy.described.inputs.cameras == tuple(name.removeprefix("images.") for name in cameras)
    assert policy.forward(torch.utils.data.default_collate([data[0], data[20]]))[0].isfinite()
    policy.save_pretrained(tmp_path / "policy")
    again = type(policy).from_pretrained(tmp_path / "policy", strict=True)
    assert again.keys == policy.keys == [f"observation.{name}" for name in cameras]
    assert list(again.config.image_features) == again.keys


def test_a_converted_stride_is_refused_before_training(dataset: Path, tmp_path: Path) -> None:
    from lerobot.datasets import LeRobotDataset
    from lerobot.policies.factory import make_policy

    root = Path(shutil.copytree(dataset, tmp_path / "set"))
    (root / "meta/la_reconvla.json").write_text(json.dumps({"frame_stride": 2}), encoding="utf-8")
    with pytest.raises(UserError, match="frame_stride is 2"):
        make_policy(configured(), ds_meta=LeRobotDataset("local/set", root=root).meta)


FREE = [arm.id for arm in CONDITIONS.values() if arm.annotation_free]


@pytest.mark.parametrize("arm", FREE)
def test_every_arm_without_boxes_trains(dataset: Path, arm: str) -> None:
    from lerobot.datasets import LeRobotDataset
    from lerobot.policies.factory import make_policy

    config = configured(condition=arm)
    times = [index / 20 for index in config.action_delta_indices]
    data = LeRobotDataset("local/set", root=dataset, delta_timestamps={"action": times})
    policy = make_policy(config, ds_meta=data.meta)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    batch = torch.utils.data.default_collate([data[index] for index in (0, 20, 40)])
    start = {name: value.clone() for name, value in policy.named_parameters()}
    policy.train()
    for _ in range(2):
        loss, logged = policy.forward(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
    assert torch.isfinite(loss)
    assert ("reconstruction_loss" in logged) == (CONDITIONS[arm].reconstruction is not None)
    assert all(type(value) is float for value in logged.values())
    moved = {name for name, value in policy.named_parameters() if not torch.equal(value, start[name])}
    assert any("action_head" in name for name in moved)
    assert any("reconstruction_head" in name for name in moved) == (CONDITIONS[arm].reconstruction is not None)
    policy.eval()
    assert policy.forward(batch)[0].isfinite()
    with pytest.raises(NotImplementedError, match="mean over the batch"):
        policy.forward(batch, reduction="none")


def test_adapters_train_alone_and_act(policy_folder: Path, tmp_path: Path) -> None:
    from lerobot.policies.factory import get_policy_class

    base = get_policy_class("la_reconvla").from_pretrained(policy_folder, strict=True)
    base.config.pretrained_path = policy_folder
    adapted = base.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2})
    free = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert all("lora_" in name or "modules_to_save" in name for name in free)
    assert any("language_model.layers.0.self_attn.q_proj.lora_A" in name for name in free)
    assert not any("vision" in name for name in free)
    with torch.no_grad():  # as if it had trained
        for name, value in adapted.named_parameters():
            if "lora_B" in name or "action_head.modules_to_save" in name:
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    _, before, after = loaded(policy_folder)
    for part in (adapted, adapted.config, before, after):
        part.save_pretrained(tmp_path)
    (main, wrist), state = pictures(3), np.linspace(-1, 1, 8, dtype=np.float32)
    policy = LeRobot(tmp_path).build()
    policy.reset(begun(WORDS[0]), None)  # pyright: ignore[reportArgumentType]
    found = policy.act(Observation(main, WORDS[0], wrist, state))
    batch = before(observed(main, wrist, WORDS[0], state))
    np.testing.assert_allclose(found, after(adapted.predict_action_chunk(batch))[0].clamp(-1, 1).numpy(), atol=1e-6)
    plain = after(loaded(policy_folder)[0].predict_action_chunk(batch))[0].numpy()
    assert np.abs(found - plain).max() > 1e-3
    assert LeRobot(tmp_path).identity()["base"] is not None


def test_data_that_a_policy_was_not_made_for(policy_folder: Path) -> None:
    from lerobot.configs import FeatureType, PolicyFeature

    policy, *_ = loaded(policy_folder)
    policy.config.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (6,))
    with pytest.raises(UserError, match=r"'observation.state' has the shape \[6\], the policy was made for \[8\]"):
        policy.config.validate_features()
    del policy.config.input_features["observation.images.image2"]
    with pytest.raises(UserError, match=r"the policy takes .*image2"):
        policy.config.validate_features()
    with pytest.raises(UserError, match="a new policy needs a data set"):
        type(policy)(configured())


# ---------------------------------------------------------------- policies of LeRobot in our simulator


def begun(words: str, id: str = "") -> Start:
    return type("Start", (), {"instruction": words, "task": 0, "suite": "libero_spatial", "id": id})()


def test_act_acts_behind_our_interface(tmp_path: Path) -> None:
    from lerobot.policies.act.modeling_act import ACTPolicy

    folder = act_folder(tmp_path / "act")
    (main, wrist), state = pictures(5, 64), np.linspace(-1, 1, 8, dtype=np.float32)
    reference = ACTPolicy.from_pretrained(folder)

    def expected(main: np.ndarray, wrist: np.ndarray) -> np.ndarray:  # normalised and back by hand
        batch = observed(main, wrist, "", (state - 0.1) / 0.3)
        batch = {k: ((v - 0.1) / 0.3 if "images" in k else v)[None] for k, v in batch.items() if k != "task"}
        return (reference.predict_action_chunk(batch)[0] * 0.3 + 0.1).detach().numpy().clip(-1, 1)

    for view, shown in (("true", (main, wrist)), ("grey_image", [np.full_like(main, GREY)] * 2)):
        policy = LeRobot(folder, view).build()  # pyright: ignore[reportArgumentType]
        policy.reset(begun(WORDS[0]), None)  # pyright: ignore[reportArgumentType]
        found = policy.act(Observation(main, WORDS[0], wrist, state))
        np.testing.assert_allclose(found, expected(*shown)[:4], atol=1e-5)
    assert len(replace(LeRobot(folder), execute=2).build().act(Observation(main, "", wrist, state))) == 2
    identity = LeRobot(folder).identity()
    assert (identity["type"], identity["base"]) == ("act", None)


def test_a_policy_that_averages_its_chunks_is_asked_each_step(tmp_path: Path) -> None:
    folder = act_folder(tmp_path / "act", temporal_ensemble_coeff=0.01, n_action_steps=1)
    policy = LeRobot(folder).build()
    (main, wrist), state = pictures(5, 64), np.zeros(8, np.float32)
    policy.reset(begun(WORDS[0]), None)  # pyright: ignore[reportArgumentType]
    assert [policy.act(Observation(main, "", wrist, state)).shape for _ in range(2)] == [(1, 7)] * 2


def test_a_policy_with_a_history_is_asked_each_step(tmp_path: Path) -> None:
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.factory import make_pre_post_processors

    inputs = {"observation.images.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64))}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    small = {"down_dims": (16, 32), "n_groups": 4, "horizon": 8, "n_action_steps": 4, "num_inference_steps": 2}
    config = DiffusionConfig(
        input_features=inputs,
        output_features=outputs,
        device="cpu",
        push_to_hub=False,
        **small,
        pretrained_backbone_weights=None,
        diffusion_step_embed_dim=16,
        spatial_softmax_num_keypoints=4,
    )
    stats = {
        k: {"min": torch.full(v.shape, -1.0), "max": torch.ones(v.shape)} for k, v in {**inputs, **outputs}.items()
    }
    stats["observation.images.image"] = {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}
    for part in (DiffusionPolicy(config), *make_pre_post_processors(config, dataset_stats=stats)):
        part.save_pretrained(tmp_path)
    policy, (main, _) = LeRobot(tmp_path).build(), pictures(5, 64)
    policy.reset(begun(WORDS[0]), None)  # pyright: ignore[reportArgumentType]
    assert not LeRobot(tmp_path).settings().wrist
    steps = [policy.act(Observation(main, WORDS[0], None, np.zeros(8, np.float32))) for _ in range(3)]
    assert [step.shape for step in steps] == [(1, 7)] * 3


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder, other = act_folder(tmp_path / "act"), act_folder(tmp_path / "other", latent_dim=8)
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(UserError, match="the weights do not fit"):
        LeRobot(folder).build()


def test_ours_is_told_the_wrong_instruction(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "one")
    make_run(tmp_path / "run")
    main, wrist = pictures(6, 32)
    direct = Trained(tmp_path / "run").build()
    for view, words in (("true", WORDS[0]), ("wrong_instruction", WORDS[1])):
        policy = LeRobot(folder, view, ((0, WORDS[0], WORDS[1]),)).build()  # pyright: ignore[reportArgumentType]
        policy.reset(begun(WORDS[0]), None)  # pyright: ignore[reportArgumentType]
        direct.tell(words)
        expected = direct.act(Observation(main, words)).clip(-1, 1)
        np.testing.assert_allclose(policy.act(Observation(main, WORDS[0], wrist)), expected, atol=1e-6)
    assert load_policy(tmp_path / "run")[1].condition == "C4"


def test_noise_is_that_of_a_rollout_whatever_acted_before(tmp_path: Path) -> None:
    """Of weights that make something of the noise."""
    config = make_run(tmp_path / "run", decoding="flow")
    weights, _ = load_tensors(tmp_path / "run/model.safetensors")
    weights["action_head.network.leave.weight"].normal_(generator=torch.Generator().manual_seed(0))
    save_tensors(tmp_path / "run/model.safetensors", weights, steps=7)
    folder = to_lerobot(tmp_path / "run", tmp_path / "there")
    seen = Observation(pictures(6, 32)[0], WORDS[0])

    def chunks(policy: Any, *starts: str) -> np.ndarray:
        acted = []
        for start in starts:
            policy.reset(begun(WORDS[0], start), None)
            acted.append([policy.act(seen).clip(-1, 1) for _ in range(2)])
        return np.array(acted)

    assert config.seed != 0
    mine = chunks(Trained(tmp_path / "run").build(), "a", "b")
    np.testing.assert_allclose(chunks(LeRobot(folder).build(), "a", "b"), mine, atol=1e-6)
    np.testing.assert_allclose(chunks(LeRobot(folder).build(), "b", "a", "b"), mine[[1, 0, 1]], atol=1e-6)

    policy, before, _ = loaded(folder)  # as LeRobot's own loop has it, which names no episode

    def batch(rows: int) -> dict[str, Any]:
        one = before(observed(seen.image, seen.image, WORDS[0], np.zeros(8, np.float32)))
        return {k: v.repeat_interleave(rows, 0) for k, v in one.items() if isinstance(v, torch.Tensor)} | {
            "task": WORDS[:1] * rows
        }

    episodes = []
    for rows in (1, 1, 3):
        policy.reset()
        episodes.append([policy.predict_action_chunk(batch(rows)) for _ in range(2)])
    flat = [chunk for episode in episodes for chunks in episode for chunk in chunks]
    assert len(flat) == 10
    assert min((a - b).abs().max() for i, a in enumerate(flat) for b in flat[:i]) > 0.01
    again, *_ = loaded(folder)
    again.reset()
    again.reset()
    torch.testing.assert_close(again.predict_action_chunk(batch(3))[:1], episodes[1][0])


def test_noise_of_lerobots_own_depends_on_the_start_alone(tmp_path: Path) -> None:
    policy, drawn = LeRobot(act_folder(tmp_path / "act")).build(), {}
    for start in ("a", "b", "a"):
        policy.reset(begun(WORDS[0], start), None)  # pyright: ignore[reportArgumentType]
        drawn.setdefault(start, []).append(torch.randn(3))
    assert torch.equal(*drawn["a"])
    assert not torch.equal(drawn["a"][0], drawn["b"][0])


# ---------------------------------------------------------------- our simulator in LeRobot


@pytest.mark.sim
def test_libero_pro_shows_the_official_starts() -> None:
    from lerobot.envs import make_env, preprocess_observation
    from lerobot.envs.factory import make_env_config
    from lerobot.utils.import_utils import register_third_party_plugins

    from la_reconvla.sim.libero import LiberoEnv
    from la_reconvla.sim.tasks import load_task, official_start

    register_third_party_plugins()
    config = make_env_config(
        "libero_pro", task="libero_spatial", task_ids=[1], image_size=32, quality="fast", episode_length=3
    )
    vector = make_env(config, n_envs=2)["libero_spatial"][1]
    task = load_task("libero_spatial", 1)
    try:
        for round_ in range(2):
            seen = preprocess_observation(vector.reset(seed=[0, 1], options={"lerobot_new_rollout": True})[0])
            with LiberoEnv(32, wrist=True, proprio=True, quality="fast") as env:
                for place in range(2):
                    env.reset(official_start(task, 2 * round_ + place))
                    wanted = env.observe()
                    for key, picture in (("image", wanted.image), ("image2", wanted.wrist)):
                        found = (seen[f"observation.images.{key}"][place] * 255).round().permute(1, 2, 0).numpy()
                        np.testing.assert_array_equal(found, picture)
                    np.testing.assert_allclose(seen["observation.state"][place], wanted.proprio, atol=1e-6)
            # the fourth step is gymnasium's reset of what has ended: it must use up no initial state
            ends = [vector.step(np.zeros((2, 7), np.float32))[3] for _ in range(4)]
            assert [truncated.tolist() for truncated in ends[:3]] == [[False] * 2, [False] * 2, [True] * 2]
        assert vector.call("task_description")[0].startswith("pick up the black bowl")  # as public data say
    finally:
        vector.close()
    for suite, words in (("libero_spatial", "files"), ("libero_spatial_lan", "names")):
        config = make_env_config("libero_pro", task=suite, task_ids=[1], words=words)
        assert make_env(config)[suite][1].call("task_description")[0] == load_task(suite, 1).instruction
    with pytest.raises(UserError, match="unknown kind of words"):
        make_env_config("libero_pro", words="speech")
    with pytest.raises(UserError, match="did you mean libero_spatial"):
        make_env(make_env_config("libero_pro", task="libero_spatail"))
