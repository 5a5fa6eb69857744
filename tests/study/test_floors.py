"""Floors: what a policy does when something is taken away, and that nothing else is. No simulator needed."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_hdf5 import make_header, make_recording

from helpers import BINS, INSTRUCTIONS, TINY, random_batch, untrained
from la_reconvla.analysis import attention_overlap as grounding
from la_reconvla.analysis.frames import FrameRecord
from la_reconvla.conditions import C1, NO_IMAGE
from la_reconvla.contracts import Features, Observation, PolicyInput
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_writer import write_file
from la_reconvla.data.samples import Samples
from la_reconvla.data.starts import Start
from la_reconvla.episodes import Label
from la_reconvla.errors import UserError
from la_reconvla.method.pixels import patchify
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.action_rows import ActionRows
from la_reconvla.sim.env import Env
from la_reconvla.sim.policies import ReplayPolicy, replayable, swapped
from la_reconvla.study import heldout
from la_reconvla.study.floors import floors_of
from la_reconvla.study.heldout import VIEWS, measure_run, view_of
from la_reconvla.study.parts import part_patches
from la_reconvla.training.checkpoint import WEIGHTS, PolicyConfig, load_policy
from la_reconvla.training.tensors import save_tensors
from la_reconvla.training.trained_policy import Trained, TrainedPolicy

TRUE, WRONG = INSTRUCTIONS[:2]
SWAPS = ((0, TRUE, WRONG),)
NO_ENV: Env = None  # type: ignore[assignment]  # neither a trained policy nor a replay may look at it


def save_run(folder: Path, seed: int = 0, quality: Any = "fast", **changes: Any) -> Path:
    """A run folder with the weights that training would start from; they act, and differently on every image."""
    arm = changes.pop("condition", C1)
    config = untrained(
        arm, dataclasses.replace(TINY, **changes), seed=seed, quality=quality, image_size=TINY.image_size
    )
    config.save(folder)
    save_tensors(folder / WEIGHTS, config.build().state_dict())
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, two targets each, two episodes of each, all of different lengths."""
    folder = tmp_path_factory.mktemp("demonstrations")
    for task in (0, 1):
        recordings = []
        for index in range(4):
            recording = make_recording(index, task, length=5 + index, size=TINY.image_size, wrist=False)
            target = recording.instance_names[index % 2]
            start = dataclasses.replace(recording.start, target=target, instruction=f"pick up the {target} of {task}")
            recordings.append(dataclasses.replace(recording, start=start))
        write_file(folder / f"{task}_demo.hdf5", make_header(task, size=TINY.image_size), recordings)
    return folder


@pytest.fixture(scope="module")
def samples(demonstrations: Path) -> Samples:
    return Samples(open_demonstrations(demonstrations), TINY.image_size, TINY.chunk)


def start(task: int = 0, index: int = 0, instruction: str = TRUE, target: str = "akita_black_bowl_1") -> Start:
    recording = make_recording(index, task)
    return dataclasses.replace(recording.start, instruction=instruction, target=target)


def picture(seed: int, size: int = TINY.image_size) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def acting(run: Path, view: Any = "true", instruction: str = TRUE) -> TrainedPolicy:
    policy = Trained(run, view, SWAPS).build()
    policy.reset(start(instruction=instruction), NO_ENV)
    return policy


# ---------------------------------------------------------------- a trained policy, and what is taken from it


def test_a_grey_image_is_any_image(run: Path) -> None:
    grey = Observation(np.full((32, 32, 3), 128, np.uint8), TRUE)
    one, two = (Observation(picture(seed), TRUE) for seed in (0, 1))
    blind, seeing = acting(run, "grey_image"), acting(run)
    assert np.array_equal(blind.act(one), blind.act(two))
    assert np.array_equal(blind.look(one), blind.look(two))
    assert np.array_equal(blind.act(one), seeing.act(grey))
    assert not np.array_equal(seeing.act(one), seeing.act(two))
    assert not np.array_equal(seeing.act(one), seeing.act(grey))


def test_a_grey_image_hides_the_wrist_camera_and_not_the_words_or_the_state(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", wrist=True, proprio="gripper")
    state = np.zeros(8, np.float32)
    wide = state.copy()
    wide[6] = 0.5

    def act(view: str, wrist: int = 0, instruction: str = TRUE, proprio: np.ndarray = state) -> np.ndarray:
        return acting(run, view, instruction).act(Observation(picture(0), instruction, picture(wrist), proprio))

    assert np.array_equal(act("grey_image"), act("grey_image", wrist=1))
    assert not np.array_equal(act("true"), act("true", wrist=1))
    assert not np.array_equal(act("grey_image"), act("grey_image", instruction=WRONG))
    assert not np.array_equal(act("grey_image"), act("grey_image", proprio=wide))


def test_a_blind_arm_acts_on_grey_under_every_view(tmp_path: Path, run: Path) -> None:
    """It has the weights of the seeing one here, so that grey must be all that it is shown."""
    blind = save_run(tmp_path / "run", condition=NO_IMAGE)
    one, two = (Observation(picture(seed), TRUE) for seed in (0, 1))
    assert np.array_equal(acting(blind).act(one), acting(blind).act(two))
    assert np.array_equal(acting(blind).act(one), acting(run, "grey_image").act(one))


def test_the_wrong_instruction_is_the_swapped_one(run: Path) -> None:
    """Whatever text the observation carries: only what the policy is told at the start of an episode counts."""
    seen = Observation(picture(0), TRUE)
    told_wrong = acting(run, "wrong_instruction")
    assert np.array_equal(told_wrong.act(seen), acting(run, instruction=WRONG).act(seen))
    assert np.array_equal(told_wrong.look(seen), acting(run, instruction=WRONG).look(seen))
    assert not np.array_equal(told_wrong.act(seen), acting(run).act(seen))


@pytest.mark.parametrize(("task", "instruction"), [(0, "fly to the moon"), (1, TRUE)])
def test_an_instruction_without_a_swap_is_refused(run: Path, task: int, instruction: str) -> None:
    policy = Trained(run, "wrong_instruction", SWAPS).build()
    with pytest.raises(UserError, match=f"no wrong instruction is known for '{instruction}'"):
        policy.reset(start(task, instruction=instruction), NO_ENV)


@pytest.mark.parametrize("size", [16, 64, 100])
def test_pictures_are_resized_to_the_policys_size(run: Path, size: int) -> None:
    large = picture(0, size)
    small = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.LANCZOS))
    policy, _ = load_policy(run)
    expected = policy.act(PolicyInput(torch.tensor(small).permute(2, 0, 1)[None], [TRUE]))[0].numpy()
    assert np.array_equal(acting(run).act(Observation(large, TRUE)), expected)


# ---------------------------------------------------------------- views of a batch


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_replaces_its_own_fields_and_nothing_else(view: Any) -> None:
    batch = dataclasses.replace(
        random_batch(2),
        wrist=random_batch(2, seed=1).images,
        proprio=torch.rand(2, 1),
        gaze=torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2),
    )
    given = dict(vars(batch))
    swaps = {(0, TRUE): WRONG, (3, WRONG): "do nothing", (3, TRUE): "of another task", (0, WRONG): "of another task"}
    shown = view_of(batch, view, [0, 3], swaps)
    changed = {name for name, value in vars(shown).items() if value is not given[name]}
    grey = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    if view == "grey_image":
        assert changed == {"images", "wrist"}
        assert torch.equal(shown.images, grey)
        assert torch.equal(shown.wrist, grey)
    elif view == "wrong_instruction":
        assert changed == {"instructions"}
        assert shown.instructions == [WRONG, "do nothing"]
    else:
        assert changed == set()
    assert all(vars(batch)[name] is value for name, value in given.items())
    assert batch.instructions == [TRUE, WRONG]


# ---------------------------------------------------------------- blind replay


def replayed(policy: ReplayPolicy, at: Start, steps: int) -> np.ndarray:
    policy.reset(at, NO_ENV)
    return np.concatenate([policy.act(None) for _ in range(steps)])


def test_blind_replay_moves_as_a_demonstration_of_the_same_task_and_target(demonstrations: Path) -> None:
    policy, steps, used = ReplayPolicy(demonstrations), 12, set()
    assert not policy.sees
    for task in (0, 1):
        for which, target in enumerate(("akita_black_bowl_1", "plate_1")):
            recordings = [make_recording(i, task, length=5 + i, size=32) for i in (which, which + 2)]
            for index in range(20, 30):
                found = replayed(policy, start(task, index, target=target), steps)
                assert np.array_equal(found, replayed(policy, start(task, index, target=target), steps))
                matches = [
                    r.start.index
                    for r in recordings
                    if np.allclose(found[: len(r.executed)], r.executed, atol=1e-6)
                    and np.array_equal(
                        found[len(r.executed) :], [[0] * 6 + [r.executed[-1, 6]]] * (steps - len(r.executed))
                    )
                ]
                assert len(matches) == 1
                used.add((task, *matches))
    assert used == {(task, index) for task in (0, 1) for index in range(4)}, "starts share the demonstrations out"


def test_blind_replay_of_nothing_is_refused(demonstrations: Path) -> None:
    policy = ReplayPolicy(demonstrations)
    for at in (start(2), start(0, target="the moon")):
        with pytest.raises(UserError, match="blind replay has no demonstration of"):
            policy.reset(at, NO_ENV)


def test_a_floor_is_rolled_out_where_it_can_be_and_the_rest_is_said(
    run: Path, demonstrations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = [start(0), start(0, 1, target="the moon"), start(1, target="plate_1"), start(2)]
    floors = floors_of(Trained(run), run, Label(None, 0), SWAPS, starts, demonstrations)
    assert [e.folder.name for e in floors] == ["grey_image", "wrong_instruction", "blind_replay"]
    assert floors[-1].takes(starts) == [starts[0], starts[2]]
    said = " ".join(capsys.readouterr().err.split())
    assert "no demonstration for 2 of 4 starts" in said
    assert "there is no run at" in said
    none = floors_of(Trained(run), run, Label(None, 0), SWAPS, starts[3:], demonstrations)
    assert [e.folder.name for e in none] == ["grey_image", "wrong_instruction"]


def test_what_libero_pro_renamed_is_replayed_with_its_task(demonstrations: Path) -> None:
    episodes = open_demonstrations(demonstrations).episodes
    at = dataclasses.replace(start(1, target="a_blue_bowl_1"), suite=f"{start().suite}_object")
    assert {e.task for e in replayable(at, episodes)} == {1}
    assert len(replayable(at, episodes)) == 4
    assert not replayable(dataclasses.replace(at, suite="libero_goal_object"), episodes)


# ---------------------------------------------------------------- held-out frames


def swaps_of(samples: Samples) -> tuple[tuple[int, str, str], ...]:
    return swapped((e.task or 0, e.instruction) for e in samples.demonstrations.episodes)


def measured(run: Path, samples: Samples, batch_size: int = 32) -> dict[Any, list[FrameRecord]]:
    return measure_run(run, samples, np.arange(len(samples)), swaps_of(samples), batch_size)


def errors(records: list[FrameRecord]) -> list[float]:
    return [record.action_error for record in records]


@pytest.mark.slow
def test_action_errors_equal_numpy(run: Path, samples: Samples) -> None:
    """One frame at a time from the episodes themselves: steps that exist, six motion dimensions, every view."""
    policy, _ = load_policy(run)
    wrong = {(task, true): told for task, true, told in swaps_of(samples)}
    found = measured(run, samples, batch_size=7)
    episodes = {episode.name: episode for episode in samples.demonstrations.episodes}
    assert len(found["true"]) == sum(len(episode.actions) for episode in episodes.values())
    cut = 0
    for view in VIEWS:
        for record in found[view]:
            episode, at = episodes[record.episode], record.frame
            image = np.full((32, 32, 3), 128, np.uint8) if view == "grey_image" else episode.frames()[at]
            told = episode.instruction if view != "wrong_instruction" else wrong[episode.task, episode.instruction]
            acted = policy.act(PolicyInput(torch.tensor(image.copy()).permute(2, 0, 1)[None], [told]))[0].numpy()
            label = episode.actions[at : at + TINY.chunk]
            cut += len(label) < TINY.chunk
            assert record.action_error == pytest.approx(np.abs(acted[: len(label), :6] - label[:, :6]).mean(), rel=1e-4)
            assert record.task == episode.task
    assert cut == 3 * len(episodes), "chunks were cut at the end of every episode"


def test_what_is_taken_away_from_a_seeing_run_shows(run: Path, samples: Samples) -> None:
    found = measured(run, samples)
    assert not np.allclose(errors(found["true"]), errors(found["grey_image"]), atol=1e-4)
    assert not np.allclose(errors(found["true"]), errors(found["wrong_instruction"]), atol=1e-4)


def test_a_blind_run_loses_nothing_to_a_grey_image(tmp_path: Path, samples: Samples) -> None:
    found = measured(save_run(tmp_path / "run", condition=NO_IMAGE), samples)
    assert errors(found["true"]) == errors(found["grey_image"])
    assert errors(found["true"]) != errors(found["wrong_instruction"])


@pytest.mark.slow
def test_records_of_two_runs_pair_by_episode_and_frame(tmp_path: Path, run: Path, samples: Samples) -> None:
    one, two = measured(run, samples), measured(save_run(tmp_path / "run", seed=1), samples, batch_size=5)
    names = [(record.episode, record.frame) for record in one["true"]]
    assert len(set(names)) == len(names)
    for view in VIEWS:
        assert [(record.episode, record.frame) for record in one[view]] == names
        assert [(record.episode, record.frame) for record in two[view]] == names
        assert {record.seed for record in one[view]} == {0}
        assert {record.seed for record in two[view]} == {1}
    assert errors(one["true"]) != errors(two["true"])


def test_frames_of_another_render_quality_are_refused(tmp_path: Path, samples: Samples) -> None:
    run = save_run(tmp_path / "run", quality="official")
    with pytest.raises(UserError, match="trained on 'official' frames, the held-out ones are 'fast'"):
        measured(run, samples)


class LooksAtItself(torch.nn.Module):
    """A backbone whose words have no attention over the image; what it gives instead is the patches' own."""

    width, patch_size, grid = 8, 8, (4, 4)

    def forward(self, inputs, *, attention=None, hidden=None):
        b, patches = len(inputs.images), patchify(inputs.images, self.patch_size)[..., : self.width]
        return Features(
            patches=patches,
            action_states=torch.zeros(b, TINY.chunk, self.width),
            instruction_state=torch.zeros(b, self.width),
            attention=(patches @ patches.mT).softmax(-1)[:, None, None] if attention else None,
            token_mask=torch.ones(b, 16, dtype=torch.bool) if attention else None,
            grid=self.grid,
            channel="image_self_attention",
        )


def test_whose_attention_it_was_stands_in_the_records(run: Path, samples: Samples, monkeypatch) -> None:
    assert {record.mean_map.channel for record in measured(run, samples)["true"]} == {"language"}
    policy = Policy(LooksAtItself(), BINS).eval()
    monkeypatch.setattr("la_reconvla.study.heldout.load_policy", lambda folder: (policy, PolicyConfig.load(folder)))
    assert {record.mean_map.channel for record in measured(run, samples)["true"]} == {"image_self_attention"}


# ---------------------------------------------------------------- maps by source


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets and destinations on some patches: random demonstrations show theirs everywhere or nowhere."""

    def masks(samples: Samples, indices: Any, boxes: Any = None) -> np.ndarray:
        found = np.zeros((len(indices), 3, 32, 32), bool)
        for row, index in zip(found, indices, strict=True):
            for part, patches in ((0, (index % 16, (index + 1) % 16)), (1, ((index + 7) % 16,))):
                for patch in patches:
                    y, x = divmod(int(patch), 4)
                    row[part, 8 * y : 8 * y + 4, 8 * x : 8 * x + 8] = True
        return found

    monkeypatch.setattr("la_reconvla.study.heldout.part_masks", masks)


@pytest.mark.slow
def test_an_arms_map_stands_beside_the_mean_map(run: Path, samples: Samples, placed: None) -> None:
    indices, swaps = np.arange(len(samples)), swaps_of(samples)
    plain = measured(run, samples)["true"]
    both = measure_run(run, samples, indices, swaps, batch_size=5, source=ActionRows())["true"]
    policy, _ = load_policy(run)
    batch = samples.batch(indices)
    looks = policy.look(batch.inputs, source=ActionRows()).numpy()
    coverage = part_patches(heldout.part_masks(samples, indices), (4, 4))
    expected = grounding.measure(looks, coverage[:, 0]).frames()
    assert all(record.arm_map is None for record in plain)
    for one, two, target in zip(plain, both, expected, strict=True):
        assert one.mean_map is not None
        assert two.mean_map is not None
        assert two.arm_map is not None
        assert (two.mean_map.source, two.arm_map.source) == ("mean", "actions")
        assert asdict(two.mean_map.target) == pytest.approx(asdict(one.mean_map.target), abs=1e-4)
        assert two.action_error == pytest.approx(one.action_error, abs=1e-4)
        assert (two.arm_map.target.mass, two.arm_map.target.auroc) == pytest.approx(
            (target.mass, target.auroc), abs=1e-4
        )
    assert any(record.mean_map.target.mass != record.arm_map.target.mass for record in both)
