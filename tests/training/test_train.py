"""Training: what a kill, a seed, an arm, a blind eye and a diverging loss do to it."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save_file
from test_hdf5 import make_header, make_recording
from test_words import small_scenes

from helpers import HEAD, TINY, random_batch
from la_reconvla import storage
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.conditions import C1, C2, C4, CONDITIONS, NO_IMAGE, S2, Condition
from la_reconvla.data.boxes import Masks
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_writer import write_file
from la_reconvla.data.samples import Samples, spread_indices
from la_reconvla.errors import UserError
from la_reconvla.leases import PREFIX
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.method.variants.autoregressive import DecodingName
from la_reconvla.method.variants.content_words import ContentWords
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.localisation_heads import LocalisationHeads
from la_reconvla.method.variants.regions import TwoRegionMask
from la_reconvla.method.variants.targets import Pixels
from la_reconvla.method.variants.teacher import EMATeacher
from la_reconvla.method.variants.warm_up import WarmUp
from la_reconvla.randomness import generator
from la_reconvla.storage import read_json, read_jsonl, write_json
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.training import gradient, run_state, trackers
from la_reconvla.training import tensors as tensor_files
from la_reconvla.training.checkpoint import CONFIG, WEIGHTS, PolicyConfig, load_policy
from la_reconvla.training.devices import pick_device, pick_precision
from la_reconvla.training.gradient import backward
from la_reconvla.training.loop import SCHEDULE, WHITENED, TrainConfig, train
from la_reconvla.training.optimizers import OptimizerName
from la_reconvla.training.pretraining import PretrainConfig, pretrain
from la_reconvla.training.run_state import SMALL_FILES, STATE
from la_reconvla.training.start_weights import bins_of
from la_reconvla.training.tensors import load_tensors, save_tensors
from la_reconvla.training.trackers import METRICS
from search_path import SEARCH

DENOISER = Denoiser(depth=1, width=16, attention_heads=2, repeats=1, target=Pixels(2))
SHORT = TrainConfig(steps=4, batch_size=4, warmup=2, log_every=1, save_every=2, check_every=2, device="cpu")
KILLED = dataclasses.replace(SHORT, steps=60, log_every=3, save_every=7, check_every=30)


def write_demonstrations(folder: Path, episodes: int = 4, pictures: int = 0, wrist: bool = False) -> Path:
    """Random demonstrations; `pictures` changes the frames and nothing else."""
    recordings = []
    for index in range(episodes):
        recording = make_recording(index, size=TINY.image_size, wrist=wrist)
        frames = np.random.default_rng((pictures, index)).integers(0, 256, recording.frames.shape, dtype=np.uint8)
        recordings.append(dataclasses.replace(recording, frames=frames))
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "task_demo.hdf5", make_header(size=TINY.image_size), recordings)
    return folder


def train_tiny(
    demonstrations: Path,
    out: Path,
    condition: Condition = C4,
    seed: int = 0,
    config: TrainConfig = SHORT,
    ticker: Any = None,
    held_out: float = 0.25,
    spread: float = 4.0,
    decoding: DecodingName = "parallel",
    backbone: SmallPaliGemma = TINY,
) -> Path:
    """Train the tiny policy; the same call goes on with a run that was stopped."""
    parts = open_demonstrations(demonstrations).divide(held_out)
    training, rest = (Samples(part, TINY.image_size, TINY.chunk) for part in parts)
    condition = condition.with_reconstruction_head(HEAD, DENOISER)
    condition = dataclasses.replace(condition, head_start=min(condition.head_start, 30))
    if not condition.annotation_free:
        training = training.annotated(Masks())
    bins = bins_of(None, training, spread, decoding)
    fields: Any = {"seed": seed, "backbone": backbone, "bins": bins, "decoding": decoding}
    policy = PolicyConfig.trained_on(condition, training, **fields)
    return train(condition, policy, config, training, rest, out, ticker)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"))


def weights(run: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(run / WEIGHTS).items()}


def numbers(run: Path) -> list[dict[str, Any]]:
    """The log without the speed, the one number that may differ between two equal runs."""
    return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in read_jsonl(run / METRICS)]


class Stop(Exception):
    pass


class StopAt:
    """A ticker that ends the training after some steps, as an interrupt would."""

    def __init__(self, steps: int):
        self.left = steps

    def advance(self, steps: float = 1, note: str | None = None, before: bool = False) -> None:
        if note is not None:  # the first call only reports what had been done before
            self.left -= 1
        if self.left == 0:
            raise Stop


# ---------------------------------------------------------------- killed and resumed


def test_a_resumed_training_says_which_steps_were_done_before(demonstrations: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "run", C1, ticker=StopAt(3))
    ticker = Mock()
    train_tiny(demonstrations, tmp_path / "run", C1, ticker=ticker)
    before, *fresh = (call.kwargs.get("before", False) for call in ticker.advance.call_args_list)
    assert ticker.advance.call_args_list[0].args == (2,), "the state of step 2 was the last"
    assert (before, fresh) == (True, [False, False])


CHILD = "import sys; from pathlib import Path; import test_train as t; import torch; torch.set_num_threads(1); "
CHILD += "t.train_tiny(Path(sys.argv[1]), Path(sys.argv[2]), config=t.KILLED)"


def start_child(demonstrations: Path, out: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": SEARCH, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(demonstrations), str(out)], env=environment)


@pytest.mark.slow
def test_a_killed_run_ends_at_the_same_bits(demonstrations: Path, tmp_path: Path) -> None:
    child = start_child(demonstrations, tmp_path / "killed")
    reached = 0
    while child.poll() is None and reached < 24:  # past several saved states, and not at one
        time.sleep(0.005)
        reached = max((line["step"] for line in read_jsonl(tmp_path / "killed" / METRICS)), default=0)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / WEIGHTS).exists(), "the run was over before it could be killed"

    assert start_child(demonstrations, tmp_path / "killed").wait() == 0
    train_tiny(demonstrations, tmp_path / "undisturbed", config=KILLED)
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "undisturbed")
    steps = [line["step"] for line in numbers(tmp_path / "killed")]
    assert steps == [0, *range(3, 61, 3)]
    assert load_tensors(tmp_path / "killed" / STATE)[1]["step"] == 60, "it can go on"


# When to die: half way through writing a file, or before or after it takes its name, which time; and then the step of
# the state that must be there.
DEATHS = {
    "before the first state": ("before", STATE, 1, None),
    "in the first state": ("half", STATE, 1, None),
    "in a later state": ("half", STATE, 2, 2),
    "before a later state counts": ("before", STATE, 2, 2),
    "when it counts": ("after", STATE, 2, 4),
    "in the last state": ("half", STATE, 3, 4),
    "when the last state counts": ("after", STATE, 3, 6),
    "in the weights": ("half", WEIGHTS, 1, 6),
    "when the weights count": ("after", WEIGHTS, 1, 6),
}
MORTAL = dataclasses.replace(SHORT, steps=6)
# Forked, because importing takes longer than all the training; nothing has made a thread by then.
DYING = """
import os, sys
from pathlib import Path

import test_train as t

for name, death in t.DEATHS.items():
    if (child := os.fork()) == 0:
        t.die(*death[:3])
        t.train_tiny(Path(sys.argv[1]), Path(sys.argv[2]) / name, config=t.MORTAL)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9, name
"""


def die(when: str, file: str, time: int) -> None:
    """Have this process killed at a certain moment."""
    write, rename, times = tensor_files.save_file, os.replace, iter(range(1, 99))

    def killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def due(path: Any) -> bool:
        return str(path).endswith(Path(file).name) and next(times) == time

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        write(tensors, path, metadata)
        if due(path):
            os.truncate(path, path.stat().st_size // 2)
            killed()

    def replace(source: Any, target: Any) -> None:
        now = due(target)
        if now and when == "before":
            killed()
        rename(source, target)
        if now:
            killed()

    if when == "half":
        tensor_files.save_file = save_file
    else:
        os.replace = replace


@pytest.fixture(scope="module")
def graves(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in each of `DEATHS`, and an undisturbed one."""
    folder = tmp_path_factory.mktemp("graves")
    environment = {**os.environ, "PYTHONPATH": SEARCH, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DYING, str(demonstrations), str(folder)]
    subprocess.run(command, env=environment, check=True)
    train_tiny(demonstrations, folder / "undisturbed", config=MORTAL)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("moment", DEATHS)
def test_no_moment_is_a_bad_one_to_be_killed(demonstrations: Path, graves: Path, moment: str) -> None:
    run, (when, file, _, step) = graves / moment, DEATHS[moment]
    assert (load_tensors(run / STATE)[1]["step"] if (run / STATE).exists() else None) == step
    assert (run / WEIGHTS).exists() is ((when, file) == ("after", WEIGHTS))
    with storage.locked(run):
        train_tiny(demonstrations, run, config=MORTAL)
    assert weights(run) == weights(graves / "undisturbed")
    assert numbers(run) == numbers(graves / "undisturbed")
    assert files(run) == files(graves / "undisturbed")


def files(run: Path) -> set[Path]:
    """What a run leaves behind, but for the lock and for TensorBoard's files, one more each time that it goes on."""
    found = {path.relative_to(run) for path in run.rglob("*")}
    return {path for path in found if path.parts[0] != "tensorboard" and not path.name.startswith(PREFIX)}


def test_tensorboard_shows_the_log_of_a_resumed_run(demonstrations: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "run", ticker=StopAt(3))
    run = train_tiny(demonstrations, tmp_path / "run")
    shown = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("loss", "reconstruction_loss"):
        logged = [(line["step"], line[name]) for line in read_jsonl(run / METRICS)[1:]]
        assert [(point.step, point.value) for point in shown.Scalars(name)] == [
            (step, pytest.approx(value)) for step, value in logged
        ]


@pytest.mark.parametrize(("stop", "optimizer"), [(1, "adamw"), (2, "adamw"), (3, "adamw"), (3, "muon")])
def test_four_steps_are_two_and_two(demonstrations: Path, tmp_path: Path, stop: int, optimizer) -> None:
    config = dataclasses.replace(SHORT, optimizer=optimizer)
    whole = train_tiny(demonstrations, tmp_path / "whole", config=config)
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "halves", ticker=StopAt(stop), config=config)
    assert weights(train_tiny(demonstrations, tmp_path / "halves", config=config)) == weights(whole)
    assert numbers(tmp_path / "halves") == numbers(whole)


@pytest.mark.parametrize(("optimizer", "part"), [("adamw", 0), ("muon", 0), ("muon", 1)])
def test_the_saved_state_holds_the_optimizer(demonstrations: Path, tmp_path: Path, optimizer, part: int) -> None:
    """Without the moments of either part the same two steps lead elsewhere, so the test above can fail."""
    config = dataclasses.replace(SHORT, optimizer=optimizer)
    whole = train_tiny(demonstrations, tmp_path / "whole", config=config)
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "halves", ticker=StopAt(3), config=config)
    path = tmp_path / "halves" / STATE
    tensors, facts = load_tensors(path)
    own = {name: value for name, value in tensors.items() if not name.startswith(f"optimizer.{part}.")}
    assert len(own) < len(tensors)
    save_tensors(path, own, **facts)
    assert weights(train_tiny(demonstrations, tmp_path / "halves", config=config)) != weights(whole)


def test_a_finished_run_is_left_alone(demonstrations: Path, tmp_path: Path) -> None:
    run = train_tiny(demonstrations, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train_tiny(demonstrations, tmp_path / "run")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_each_step_draws_its_masks_and_noise_from_streams_of_its_own(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[torch.Tensor]] = []

    def watched(*arguments: Any, **more: Any) -> Any:
        streams = (arguments[4], *arguments[-2:])
        drawn.append([stream.get_state() for stream in streams])
        return backward(*arguments, **more)

    monkeypatch.setattr("la_reconvla.training.loop.backward", watched)
    train_tiny(demonstrations, tmp_path / "run", C2, seed=5, config=dataclasses.replace(SHORT, steps=3))
    assert len(drawn) == 3
    for step, states in enumerate(drawn):
        for state, name in zip(states, ("mask", "noise", "action noise"), strict=True):
            assert torch.equal(state, generator(5, name, step).get_state())
    assert len({tuple(states[0].tolist()) for states in drawn}) == 3


# ---------------------------------------------------------------- pairing


@pytest.mark.slow
def test_all_arms_of_a_seed_start_alike_and_see_the_same_batches(demonstrations: Path, tmp_path: Path) -> None:
    short = dataclasses.replace(SHORT, steps=2)
    logs = {
        (arm.id, seed): read_jsonl(train_tiny(demonstrations, tmp_path / f"{arm.id}{seed}", arm, seed, short) / METRICS)
        for arm in CONDITIONS.values()
        for seed in ((0, 1) if arm is C1 else (0,))
    }
    starts = {key: json.dumps(lines[0]["start"], sort_keys=True) for key, lines in logs.items()}
    batches = {key: [line["batches"] for line in lines[1:]] for key, lines in logs.items()}
    for arm in CONDITIONS.values():
        assert batches[arm.id, 0] == batches["C1", 0]
        assert (starts[arm.id, 0] == starts["C1", 0]) is not arm.blind  # a blind one knows nothing of the images
    assert starts["C1", 1] != starts["C1", 0]
    channels = {arm.id: {line.get("attention_channel") for line in logs[arm.id, 0][1:]} for arm in (C1, C2, C4)}
    assert channels == {"C1": {None}, "C2": {None}, "C4": {"language"}}, "the log says whose attention made the mask"
    assert all(one != other for one, other in zip(batches["C1", 1], batches["C1", 0], strict=True))


TWO_CELLS = """
import sys
from pathlib import Path

import torch

import test_train as t

assert torch.get_num_threads() == 2, "otherwise nothing is tested"
short = t.dataclasses.replace(t.SHORT, steps=1)
for arm in (t.CONDITIONS["C2"], t.C1):
    run = t.train_tiny(Path(sys.argv[1]), Path(sys.argv[2]) / arm.id, arm, config=short)
    print(t.read_jsonl(run / t.METRICS)[0]["start"])
"""


@pytest.mark.slow
def test_the_first_cell_of_a_process_starts_as_the_later_ones_do(demonstrations: Path, tmp_path: Path) -> None:
    """A process begins with as many threads as there are cores, and the whitening's last bits depend on them."""
    environment = {**os.environ, "PYTHONPATH": SEARCH}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    command = [sys.executable, "-c", TWO_CELLS, str(demonstrations), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second


def test_a_blind_arm_never_sees_a_pixel(demonstrations: Path, tmp_path: Path) -> None:
    other = write_demonstrations(tmp_path / "other", pictures=1)
    for arm, same in ((NO_IMAGE, True), (C1, False)):
        one = train_tiny(demonstrations, tmp_path / f"{arm.id}-one", arm)
        two = train_tiny(other, tmp_path / f"{arm.id}-two", arm)
        assert (weights(one) == weights(two)) is same


def test_shifts_move_all_arms_alike(demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    losses = gradient.losses

    def watched(policy: Any, batch: Any, *rest: Any) -> Any:
        if policy.training:  # not the held-out samples, which are never moved
            seen.append(batch.images)
        return losses(policy, batch, *rest)

    monkeypatch.setattr(gradient, "losses", watched)
    for arm, shift in ((C1, 3), (C4, 3), (C4, 0)):
        train_tiny(demonstrations, tmp_path / f"{arm.id}{shift}", arm, config=dataclasses.replace(SHORT, shift=shift))
    one, other, still = seen[:4], seen[4:8], seen[8:]
    for a, b, c in zip(one, other, still, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    with pytest.raises(UserError, match="shift must not be negative: -1"):
        TrainConfig(shift=-1)


# ---------------------------------------------------------------- sources that live through training

REFRESHED = LocalisationHeads(count=2, frames=6, refresh=2)
MASKS = {
    "C4-teacher": Reconstruction(saliency=EMATeacher(decay=0.5)),
    "C4-localised": Reconstruction(saliency=REFRESHED),
    "C4-localised-of-a-teacher": Reconstruction(saliency=EMATeacher(decay=0.5, source=REFRESHED)),
    "C4-warmup": Reconstruction(WarmUp(share=0.4)),
    "C4-two": Reconstruction(TwoRegionMask()),
}
LIVING = {name: Condition(name, name, extra) for name, extra in MASKS.items()} | {"S2": S2}


@pytest.mark.parametrize("stop", [2, 3])
@pytest.mark.parametrize("name", LIVING)
def test_arms_with_a_memory_end_at_the_same_bits(demonstrations: Path, tmp_path: Path, name: str, stop: int) -> None:
    """Stopped at a saved state and one step after it; heads are chosen anew at steps 0, 2 and 4."""
    arm = LIVING[name]
    config = dataclasses.replace(SHORT, steps=6)
    whole = train_tiny(demonstrations, tmp_path / "whole", arm, config=config)
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "halves", arm, config=config, ticker=StopAt(stop))
    halves = train_tiny(demonstrations, tmp_path / "halves", arm, config=config)
    assert weights(halves) == weights(whole)
    assert numbers(halves) == numbers(whole)
    assert weights(whole) != weights(train_tiny(demonstrations, tmp_path / "plain", config=config))
    assert not any("teacher" in key for key in weights(whole))
    policy, loaded = load_policy(whole)
    learned = arm.learned_saliency.state_shape if arm.learned_saliency else ()
    assert loaded.saliency_state_shape == learned
    if learned:
        assert policy.saliency_state is not None
        assert (policy.saliency_state >= 0).all()
        batch = random_batch()
        assert torch.isfinite(policy.look(batch.inputs, source=REFRESHED)).all()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_vision_stays_as_it_was_and_is_saved(
    demonstrations: Path, tmp_path: Path, optimizer: OptimizerName
) -> None:
    start = pretrain(small_scenes(8), PretrainConfig(TINY, steps=2, batch_size=4, warmup=1), tmp_path / "start")
    frozen = dataclasses.replace(TINY, weights=str(start), freeze_vision=True)
    config = dataclasses.replace(SHORT, steps=6, optimizer=optimizer)
    whole = train_tiny(demonstrations, tmp_path / "whole", config=config, backbone=frozen)
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "halves", config=config, backbone=frozen, ticker=StopAt(3))
    assert weights(train_tiny(demonstrations, tmp_path / "halves", config=config, backbone=frozen)) == weights(whole)
    before, after = load_tensors(start)[0], load_policy(whole)[0].backbone.state_dict()
    seeing = {name for name in after if "vision_tower" in name or "multi_modal_projector" in name}
    assert len(seeing) > 20
    assert all(torch.equal(after[name], before[name].float()) for name in seeing)
    assert not any(
        torch.equal(after[name], before[name].float())
        for name in after
        if name.endswith("q_proj.weight") and name not in seeing
    )
    with pytest.raises(UserError, match="name weights, or let it train"):
        StudyConfig(backbone=dataclasses.replace(TINY, freeze_vision=True))
    assert not preset("quick").changed(weights="none").backbone.freeze_vision, "random weights must learn to see"


@pytest.mark.parametrize("arm", ["C1", "C2", "C4", "C4-input", "G1", "R1"])
def test_the_log_says_what_a_head_scores_beside_the_mean_picture(
    demonstrations: Path, tmp_path: Path, arm: str
) -> None:
    run = train_tiny(demonstrations, tmp_path / "run", CONDITIONS[arm])
    checks = [line for line in numbers(run) if "held_out_action_loss" in line]
    assert len(checks) == 2
    if arm not in ("C2", "C4", "C4-input"):  # nothing is reconstructed, no box is there, or it draws from noise
        assert not any("mean_picture_loss" in line for line in checks)
        return
    training, rest = open_demonstrations(demonstrations).divide(0.25)
    averaged = dataclasses.replace(SHORT, ema=True)  # an average of the weights has learned no heads to follow
    heads = numbers(train_tiny(demonstrations, tmp_path / "ema", CONDITIONS["C4-localised"], config=averaged))[-1]
    assert heads["mean_picture_loss"] > 0
    both = (Samples(part, TINY.image_size, TINY.chunk) for part in (training, rest))
    pixels, shown = (part.batch(np.arange(len(part))).images.numpy() / 127.5 - 1 for part in both)
    wanted = ((shown - pixels.mean(0)) ** 2).mean()  # of all pixels: frames of noise differ little from patch to patch
    assert checks[-1]["mean_picture_loss"] == pytest.approx(wanted, rel=0.05)
    assert 0.5 < checks[-1]["held_out_reconstruction_loss"] / wanted < 3


HEAD_ALONE = dataclasses.replace(C4, head_start=30)


def test_a_head_start_trains_the_head_and_nothing_else(demonstrations: Path, tmp_path: Path) -> None:
    plain, started = (numbers(train_tiny(demonstrations, tmp_path / str(i), a)) for i, a in enumerate((C4, HEAD_ALONE)))
    assert plain[0]["start"] == started[0]["start"]
    assert (started[0]["head_start"], plain[0].get("head_start")) == (30, None)
    assert plain[1]["action_loss"] == started[1]["action_loss"], "policy and batch of the first step are those of C4"
    assert [line["batches"] for line in plain[1:]] == [line["batches"] for line in started[1:]]
    assert started[1]["reconstruction_loss"] < 0.8 * plain[1]["reconstruction_loss"]
    assert started[0]["head_start_loss"] == pytest.approx(started[1]["reconstruction_loss"], rel=0.2)
    assert read_json(tmp_path / "1" / "train.json")["head_start"] == 30


@pytest.mark.parametrize("stop", [5, 30, 32, 33])  # of thirty steps of the head alone, and four of all
def test_a_run_that_is_killed_in_its_head_start_or_after_ends_at_the_same_bits(
    demonstrations: Path, tmp_path: Path, stop: int
) -> None:
    calm = train_tiny(demonstrations, tmp_path / "calm", HEAD_ALONE)
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "killed", HEAD_ALONE, ticker=StopAt(stop))
    killed = train_tiny(demonstrations, tmp_path / "killed", HEAD_ALONE)
    assert weights(killed) == weights(calm)
    assert numbers(killed) == numbers(calm)


def test_a_state_carries_the_teacher(demonstrations: Path, tmp_path: Path) -> None:
    """A build that starts the teacher again from the student would pass only with decay 0."""
    arm = LIVING["C4-teacher"]
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "run", arm, ticker=StopAt(3))
    tensors, _ = load_tensors(tmp_path / "run" / STATE)
    teacher = {name.removeprefix("teacher."): t for name, t in tensors.items() if name.startswith("teacher.")}
    student = {name.removeprefix("policy.backbone."): t for name, t in tensors.items()}
    assert teacher
    assert not any(torch.equal(teacher[name], student[name]) for name in teacher if name == "queries")


def test_during_its_warm_up_an_arm_is_the_random_one(demonstrations: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, steps=2)
    runs = [
        train_tiny(demonstrations, tmp_path / arm.id, arm, config=config)
        for arm in (CONDITIONS["C2"], Condition("C4-warmup", "", Reconstruction(WarmUp(share=1.0))))
    ]
    assert weights(runs[0]) == weights(runs[1])


def test_instructions_without_the_words_are_refused_before_training(tmp_path: Path, demonstrations: Path) -> None:
    class Wordless(ContentWords):
        def words(self, text: str) -> list[tuple[int, int]]:
            return []

    arm = Condition("C4-words", "words", Reconstruction(saliency=Wordless()))
    with pytest.raises(UserError, match="has no word for the map 'words'"):
        train_tiny(demonstrations, tmp_path / "run", arm)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- learning


@pytest.mark.slow
def test_a_small_set_is_learned_by_heart(tmp_path: Path) -> None:
    folder = write_demonstrations(tmp_path / "demonstrations")
    config = dataclasses.replace(SHORT, steps=120, batch_size=12, warmup=10, learning_rate=3e-3, save_every=1000)
    config = dataclasses.replace(config, log_every=50, check_every=1000)
    run = train_tiny(folder, tmp_path / "run", config=config, spread=1.0)
    lines = read_jsonl(run / METRICS)[1:]
    assert lines[-1]["action_loss"] < math.log(256) / 2, "before learning, every one of 256 bins is as likely"
    assert lines[-1]["reconstruction_loss"] < lines[0]["reconstruction_loss"]

    training, _ = open_demonstrations(folder).divide(0.25)
    batch = Samples(training, TINY.image_size, TINY.chunk).batch(np.arange(12))
    policy, config_of_run = load_policy(run)
    trained, fresh = (
        (actor.act(batch.inputs) - batch.actions).abs()[batch.valid].mean()
        for actor in (policy, config_of_run.build().eval())
    )
    assert trained < 0.4 * fresh


@given(
    steps=st.integers(2, 5000),
    share=st.floats(0, 0.9),
    peak=st.floats(1e-5, 1e-1),
)
def test_the_rate_rises_in_a_line_and_falls_as_a_cosine(steps: int, share: float, peak: float) -> None:
    warmup = int(share * steps)
    config = TrainConfig(steps=steps, warmup=warmup, learning_rate=peak)
    ramp, fall = np.arange(warmup), np.arange(warmup, steps)
    expected = np.concatenate(
        [
            peak * (ramp + 1) / max(1, warmup),
            peak * (0.505 + 0.495 * np.cos(np.pi * (fall - warmup) / (steps - warmup))),
        ]
    )
    np.testing.assert_allclose([config.rate(step) for step in range(steps)], expected, rtol=1e-9)
    assert config.rate(steps) == pytest.approx(0.01 * peak), "it would end at a hundredth"


def test_the_rate_of_the_log_is_the_rate_used(demonstrations: Path, tmp_path: Path) -> None:
    lines = read_jsonl(train_tiny(demonstrations, tmp_path / "run", C1) / METRICS)[1:]
    assert [line["learning_rate"] for line in lines] == [SHORT.rate(step) for step in range(4)]
    frozen = dataclasses.replace(SHORT, learning_rate=0.0)
    run = train_tiny(demonstrations, tmp_path / "frozen", C1, config=frozen)
    training = Samples(open_demonstrations(demonstrations).divide(0.25)[0], TINY.image_size, TINY.chunk)
    images = training.batch(spread_indices(len(training), WHITENED)).images
    fresh = PolicyConfig.load(run).start(images).state_dict()
    assert weights(run) == {name: tensor.numpy().tobytes() for name, tensor in fresh.items()}


def test_half_precision_trains_too(demonstrations: Path, tmp_path: Path) -> None:
    half = dataclasses.replace(SHORT, precision="bf16")
    lines = read_jsonl(train_tiny(demonstrations, tmp_path / "half", config=half) / METRICS)[1:]
    full = read_jsonl(train_tiny(demonstrations, tmp_path / "full") / METRICS)[1:]
    assert lines[0]["loss"] != full[0]["loss"]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in full], rel=0.05)


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert pick_precision("auto", gpu) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert pick_precision("auto", gpu) is torch.float16, "a T4 has no bf16 of its own"
    assert pick_precision("auto", cpu) is torch.float32
    assert [pick_precision(name, gpu) for name in ("fp32", "bf16", "fp16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match=r"'toaster' is not usable here.*--device cpu"):
        pick_device("toaster")


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("arm", [C1, C4], ids=lambda arm: arm.id)
def test_a_diverging_loss_ends_the_run(demonstrations: Path, tmp_path: Path, arm: Condition) -> None:
    config = dataclasses.replace(SHORT, learning_rate=1e30, warmup=0)
    with pytest.raises(UserError, match="lower the learning rate"):
        train_tiny(demonstrations, tmp_path / "run", arm, config=config)
    assert not (tmp_path / "run" / WEIGHTS).exists()


def faulty(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let one step have a finite loss without a finite gradient: the slope of a root at zero."""
    steps, losses = iter(range(99)), gradient.losses

    def wrong(policy: Any, *rest: Any) -> Any:
        found = losses(policy, *rest)
        if torch.is_grad_enabled() and next(steps) == at:  # held-out looks do not count
            found.total = found.total + (policy.action_head.logits.bias.sum() * 0).sqrt()
        return found

    monkeypatch.setattr(gradient, "losses", wrong)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    config = dataclasses.replace(SHORT, precision=precision)
    with monkeypatch.context() as patch:
        faulty(patch, at=2)
        with pytest.raises(UserError, match="gradient is nan at step 2: lower the learning rate"):
            train_tiny(demonstrations, tmp_path / "run", config=config)
    assert all(torch.isfinite(t).all() for t in load_tensors(tmp_path / "run" / STATE)[0].values())
    run = train_tiny(demonstrations, tmp_path / "run", config=config)
    assert weights(run) == weights(train_tiny(demonstrations, tmp_path / "other", config=config))


def test_loss_scaling_skips_a_gradient_that_is_not_finite(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty(monkeypatch, at=3)
    three, four = (dataclasses.replace(SHORT, precision="fp16", steps=s, learning_rate=1e-3) for s in (3, 4))
    monkeypatch.setattr(TrainConfig, "rate", lambda config, step: 1e-3)  # the same for both
    last = train_tiny(demonstrations, tmp_path / "four", C1, config=four)
    assert not math.isfinite(read_jsonl(last / METRICS)[-1]["gradient_norm"] or math.nan)
    monkeypatch.undo()
    monkeypatch.setattr(TrainConfig, "rate", lambda config, step: 1e-3)
    assert weights(last) == weights(train_tiny(demonstrations, tmp_path / "three", C1, config=three))


def test_space_is_asked_for_before_anything_is_written(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(run_state, "require_free_space", lambda folder, size: asked.append(size))
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "run", ticker=StopAt(3))
    state = (tmp_path / "run" / STATE).stat().st_size
    train_tiny(demonstrations, tmp_path / "run")
    assert [size - SMALL_FILES for size in asked] == pytest.approx([2 * state, state], rel=0.1)
    train_tiny(demonstrations, tmp_path / "run")
    assert len(asked) == 2, "a finished run needs none"

    monkeypatch.undo()
    usage = storage.shutil.disk_usage(tmp_path)._replace(free=SMALL_FILES)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"are needed and 0\.02 GB are free"):
        train_tiny(demonstrations, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_disk_that_fills_up_is_explained_and_the_run_goes_on_later(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", full)
        with pytest.raises(UserError, match="disk is full; nothing was overwritten"):
            train_tiny(demonstrations, run)
    assert not list(run.rglob(".tmp-*"))
    assert weights(train_tiny(demonstrations, run)) == weights(train_tiny(demonstrations, tmp_path / "other"))


@pytest.mark.parametrize("call", ["__init__", "add_scalar", "close"])
def test_a_disk_that_is_full_for_the_curves_is_explained(
    demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trackers.SummaryWriter, call, full)
        with pytest.raises(UserError, match="tensorboard: the disk is full"):
            train_tiny(demonstrations, run)
    assert weights(train_tiny(demonstrations, run)) == weights(train_tiny(demonstrations, tmp_path / "other"))


def test_too_few_samples(demonstrations: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="12 samples are fewer than one batch of 1000"):
        train_tiny(demonstrations, tmp_path / "run", config=dataclasses.replace(SHORT, batch_size=1000))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 1}, "seed: 0, now 1"),
        ({"condition": C1}, "condition: C4, now C1, reconstruction_head"),
        ({"spread": 2.0}, "bins.spread: 4.0, now 2.0"),
    ],
)
def test_a_folder_of_another_configuration_is_refused(
    demonstrations: Path, tmp_path: Path, other: dict[str, Any], named: str
) -> None:
    run = train_tiny(demonstrations, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"another configuration \(different: {named}\)"):
        train_tiny(demonstrations, tmp_path / "run", **other)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_of_another_schedule_is_refused(demonstrations: Path, tmp_path: Path) -> None:
    run = train_tiny(demonstrations, tmp_path / "run")
    with pytest.raises(UserError, match=r"another configuration \(different: .*steps"):
        train_tiny(demonstrations, tmp_path / "run", config=dataclasses.replace(SHORT, steps=6))
    assert read_jsonl(run / METRICS)[-1]["step"] == 4


def test_a_schedule_of_before_a_choice_goes_on(demonstrations: Path, tmp_path: Path) -> None:
    run = train_tiny(demonstrations, tmp_path / "run")
    held = read_json(run / SCHEDULE)
    assert (held["kind"], held.pop("clip")) == ("TrainConfig", 1.0)
    write_json(run / SCHEDULE, held)
    train_tiny(demonstrations, tmp_path / "run")
    with pytest.raises(UserError, match=r"clip: 1.0, now 2.0"):
        train_tiny(demonstrations, tmp_path / "run", config=dataclasses.replace(SHORT, clip=2.0))


def test_a_saved_policy_acts_as_it_did(demonstrations: Path, tmp_path: Path) -> None:
    run = train_tiny(demonstrations, tmp_path / "run")
    policy = PolicyConfig.load(run).build().eval()
    batch = random_batch()
    untrained = policy.act(batch.inputs)
    policy.load_state_dict(load_file(run / WEIGHTS))
    loaded, config = load_policy(run)
    assert config.condition == "C4"
    assert not loaded.training
    acted = loaded.act(batch.inputs)
    assert torch.equal(acted, policy.act(batch.inputs))
    assert not torch.equal(acted, untrained)


def test_damaged_runs_are_named(demonstrations: Path, tmp_path: Path) -> None:
    run = train_tiny(demonstrations, tmp_path / "run")
    path = run / WEIGHTS
    whole = path.read_bytes()
    tensors = load(whole)  # `load_file` would map the very file that is damaged below

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_policy(run)
    save_file({**tensors, "action_head.logits.bias": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"head\.logits\.bias is \[3\], expected \[1792\]"):
        load_policy(run)
    save_file({name: tensor for name, tensor in tensors.items() if name != "action_head.logits.bias"}, path)
    with pytest.raises(UserError, match=r"head\.logits\.bias is missing"):
        load_policy(run)
    path.unlink()
    with pytest.raises(UserError, match="train this run first"):
        load_policy(run)
    (run / CONFIG).write_text((run / CONFIG).read_text()[:-20])
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        load_policy(run)


def test_boxes_and_arms_must_fit(demonstrations: Path, tmp_path: Path) -> None:
    """An arm that is told nothing never gets boxes, also if a caller hands them over; one that needs them says so."""
    parts = open_demonstrations(demonstrations).divide(0.25)
    samples = Samples(parts[0], TINY.image_size, TINY.chunk)
    for arm, told, said in (
        (C4, samples.annotated(Masks()), "told nothing"),
        (CONDITIONS["G1"], samples, "must be told"),
    ):
        arm = arm.with_reconstruction_head(HEAD)
        policy = PolicyConfig.trained_on(arm, samples, seed=0, backbone=TINY)
        with pytest.raises(UserError, match=said):
            train(arm, policy, SHORT, told, None, tmp_path / arm.id)
        assert not (tmp_path / arm.id).exists()


def test_what_decided_the_boxes_is_part_of_the_run(demonstrations: Path, tmp_path: Path) -> None:
    run = train_tiny(demonstrations, tmp_path / "run", CONDITIONS["G1"])
    assert json.loads((run / SCHEDULE).read_text())["annotation"] == "masks"
    assert "annotation" not in json.loads((train_tiny(demonstrations, tmp_path / "c4") / SCHEDULE).read_text())


def test_a_training_leaves_its_looks_on_the_same_held_out_samples_at_every_check(demonstrations, tmp_path):
    """Drift and overlap over training are measured from these files, so they must be maps of the policy itself."""
    run = train_tiny(demonstrations, tmp_path / "run")
    looks = {path.stem: np.load(path) for path in sorted((run / "looks").iterdir())}
    assert list(looks) == ["000000", "000002", "000004"]
    held_out = Samples(open_demonstrations(demonstrations).divide(0.25)[1], TINY.image_size, TINY.chunk)
    batch = held_out.batch(spread_indices(len(held_out), 64))
    wanted = load_policy(run)[0].look(batch.inputs).numpy()
    assert np.allclose(looks["000004"], wanted, atol=1e-6)
    assert not np.array_equal(looks["000000"], looks["000004"])
