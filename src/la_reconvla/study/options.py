"""The options of the commands that study policies. Light: the command line reads them for its help.

The classes of changes name what `la_reconvla.study.presets.StudyConfig.changed` takes: fields of the study, of its
backbone, head and schedule, with None for the preset's value, and a few options that choose several fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from tyro.conf import arg

from la_reconvla.data.instructions import Words
from la_reconvla.data.starts import PlacementKind
from la_reconvla.episodes import View
from la_reconvla.robot import Fit, StateChoice
from la_reconvla.sim.options import IfGiven
from la_reconvla.training.options import ServiceName

T = TypeVar("T")
UNTRAINED = ("expert", "random")  # what the command eval takes beside runs
PerPreset = Annotated[T | None, arg(help_behavior_hint="(default: the preset's)")]


@dataclass(frozen=True, kw_only=True)
class PolicyChanges:
    """What is trained, where it differs from the preset.

    Attributes:
        backbone: a pretrained backbone instead of the preset's: an id on the hub or a folder.
        weights: initial weights of the small backbone: base, words-7x7, a file written by pretrain, or none.
        lora_rank: rank of a pretrained backbone's adapters; 0 trains without adapters.
        quantize: nf4 keeps a pretrained backbone's linear layers in 4 bits; needs a GPU.
        dtype: dtype of a pretrained backbone's weights.
        chunk: actions decoded and executed per forward pass; 1 is the published setting.
        decoding: parallel (a chunk in one forward pass), autoregressive (token by token, as RT-2 and OpenVLA), or a
            chunk drawn from noise: diffusion (as Diffusion Policy) or flow (as pi0).
        proprio: robot state as input: none (published), the gripper's width (LIBERO's), or all.
        cameras: the main camera, and with a second name another one beside it; by default the data's first.
        fit: of images that are not square: squeeze them, or pad them with black.
        wrist: use the data's second camera too, LIBERO's wrist camera.
        max_tokens: maximum length of an instruction in tokens.
        norm_pixels: reconstruct pixels normalised per patch.
        latents: a VAE (id on the hub or folder) whose latents diffusion heads reconstruct instead of pixels.
    """

    backbone: PerPreset[str] = None
    weights: PerPreset[str] = None
    lora_rank: PerPreset[int] = None
    quantize: PerPreset[Literal["nf4"]] = None
    dtype: PerPreset[Literal["fp32", "bf16", "fp16"]] = None
    chunk: PerPreset[int] = None
    decoding: PerPreset[Literal["parallel", "autoregressive", "diffusion", "flow"]] = None
    proprio: PerPreset[StateChoice] = None
    cameras: PerPreset[tuple[str, ...]] = None
    fit: PerPreset[Fit] = None
    wrist: PerPreset[bool] = None
    max_tokens: PerPreset[int] = None
    norm_pixels: PerPreset[bool] = None
    latents: PerPreset[str] = None


@dataclass(frozen=True, kw_only=True)
class TrainingChanges:
    """How it is trained, where that differs from the preset.

    Attributes:
        steps: optimizer steps.
        held_out: share of each instruction's episodes to keep for held-out frames; 0 trains one policy on all.
        ema: let a moving average of the weights act, as Diffusion Policy does.
        shift: augmentation: shift training images at random by up to this many pixels.
        gaze: target boxes, for arms that use them: masks (the simulator's), or a file written by data boxes.
        device: where policies train and act: auto, cpu, cuda or mps.
        track: also report the lines of metrics.jsonl to this service; a resumed training goes on in the same run there.
    """

    steps: PerPreset[int] = None
    held_out: PerPreset[float] = None
    ema: PerPreset[bool] = None
    shift: PerPreset[int] = None
    gaze: PerPreset[str] = None
    device: PerPreset[str] = None
    track: IfGiven[ServiceName] = None


@dataclass(frozen=True, kw_only=True)
class ScheduleChanges(TrainingChanges):
    """How one policy is trained, where that differs from the preset.

    Attributes:
        batch_size: samples per step.
        accumulate: micro-batches per step; more of them need less memory.
        learning_rate: peak learning rate.
    """

    batch_size: PerPreset[int] = None
    accumulate: PerPreset[int] = None
    learning_rate: PerPreset[float] = None


@dataclass(frozen=True, kw_only=True)
class StudyChanges:
    """What is compared, where it differs from the preset.

    Attributes:
        seeds: training seeds; a finished study can be extended by more.
        conditions: arms, for example C1 C2 C4, or C4-5, C4 with lambda 5; an unknown name lists all. A finished study
            can be extended by more.
        grid: all arms of the grid: reconstruction target by reconstruction head.
        suite: LIBERO suite, for example libero_goal; give --tasks too. Or calvin, with its data as --demonstrations.
        tasks: indices of the suite's tasks.
        placement: initial states in training and evaluation: wide, or official (LIBERO's own).
        demos: demonstrations per task.
        episodes: evaluation episodes per task; a finished study can be extended by more.
        also_official: evaluate also on this many official initial states per task; can extend a finished study.
        elsewhere: further suites to evaluate on, for example libero_spatial_lan, libero_spatial_paraphrase,
            libero_spatial_counterfactual; can extend a finished study.
        elsewhere_episodes: official initial states per task of these suites; 10 in the presets.
    """

    seeds: PerPreset[tuple[int, ...]] = None
    conditions: PerPreset[tuple[str, ...]] = None
    grid: bool = False
    suite: PerPreset[str] = None
    tasks: PerPreset[tuple[int, ...]] = None
    placement: PerPreset[PlacementKind] = None
    demos: PerPreset[int] = None
    episodes: PerPreset[int] = None
    also_official: PerPreset[int] = None
    elsewhere: PerPreset[tuple[str, ...]] = None
    elsewhere_episodes: PerPreset[int] = None


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """On which starts policies are rolled out.

    Attributes:
        suite: LIBERO suite; by default that of the (first) run's training. With _paraphrase, _counterfactual or _plus
            behind the name other words or another request; of eval also calvin, with --dataset.
        tasks: indices of its tasks. By default those of the training, on changed variants of its suite too; all
            tasks of another suite; 0 to 2 for expert and random.
        placement: initial states; changed suites and libero_10 have official ones only.
    """

    suite: IfGiven[str] = None
    tasks: IfGiven[tuple[int, ...]] = None
    placement: PlacementKind = "wide"


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """What rolls out.

    Attributes:
        workers: processes; 0 takes one per core.
        device: where policies run: auto, cpu, cuda or mps.
        allow_any_mujoco: accept a MuJoCo version whose scores are not comparable.
    """

    workers: int = 0
    device: str = "auto"
    allow_any_mujoco: bool = False


@dataclass(frozen=True, kw_only=True)
class FloorOptions:
    """What the policy is measured against.

    Attributes:
        view: input of a trained policy: true, or one of its floors, a grey image or a wrong instruction.
        floors: also evaluate the floors on the same starts: grey image, wrong instruction and, where they exist, the
            study's run without image and blind replay.
        demonstrations: what blind replay repeats; by default the demonstrations of the run's study.
    """

    view: View = "true"
    floors: bool = False
    demonstrations: IfGiven[Path] = None


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """How much of one policy is rolled out, and where to.

    Attributes:
        episodes: episodes per task.
        out: folder for episodes.jsonl and videos; by default inside the run.
        allow_train_starts: use the starts of training (wide: the training placements; official: from number 0 up) and
            print how many of them this policy was trained on.
        max_steps: step limit of an episode; by default that of its task.
        instruction: what the policy is told in place of the task's instruction; success is still the task's.
        words: in which others' policies (ws://..., lerobot:...) are told a task: those of its task file (pick the akita
            black bowl), as our policies learn, or those of its name (pick up the black bowl), as public data say.
        execute: so many actions of each chunk of others' policies (ws://..., lerobot:...) are carried out before the
            next look; by default all, or what LeRobot's configuration says.
        dataset: with --suite calvin, the folder of a CALVIN dataset, which says what the scene is; --episodes are then
            sequences, the first of the published 1000.
    """

    episodes: int = 10
    out: IfGiven[Path] = None
    allow_train_starts: bool = False
    max_steps: IfGiven[int] = None
    instruction: IfGiven[str] = None
    words: Words = "files"
    execute: IfGiven[int] = None
    dataset: IfGiven[Path] = None


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RolloutOptions, StartOptions, FloorOptions, MachineOptions):
    """How a policy is rolled out."""


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How much of two policies is rolled out, and where to.

    Attributes:
        out: folder for comparison.json and for records as eval writes them.
        episodes: maximum of episodes per task, up to 500 in total; fixed after the first rollout.
    """

    out: Path
    episodes: int = 50


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """What is filmed.

    Attributes:
        suite: LIBERO suite; by default the one that the first run was trained on.
        task: index of a task; by default the first one that the first run was trained on.
        placement: kind of start.
        episode: number of the start among the task's test starts, as in evaluations.
        size: rows and columns of each picture.
        allow_any_mujoco: film on a MuJoCo with which scores are not comparable.
    """

    suite: IfGiven[str] = None
    task: IfGiven[int] = None
    placement: PlacementKind = "wide"
    episode: int = 0
    size: int = 256
    allow_any_mujoco: bool = False


@dataclass(frozen=True, kw_only=True)
class CompareOptions(PairOptions, StartOptions, MachineOptions):
    """How two policies are rolled out."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained.

    Attributes:
        backbone: id on the hub, or a folder with config.json.
        chunk: actions decoded per forward pass.
        lora_rank: rank of the adapters; 0 trains the language model in full.
        quantize: nf4 keeps the linear layers in 4 bits.
        dtype: dtype of frozen weights; auto takes the device's half precision.
        checkpointing: gradient checkpointing.
        train_vision: train the vision tower too.
        last: train only this many of the last language layers.
    """

    backbone: str = "google/paligemma-3b-pt-224"
    chunk: int = 8
    lora_rank: int = 16
    quantize: Literal["none", "nf4"] = "none"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    checkpointing: bool = True
    train_vision: bool = False
    last: IfGiven[int] = None


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How it is trained, and on what.

    Attributes:
        device: device to plan for; cpu is this machine.
        condition: arm, for example C1 or C4.
        decoding: of actions.
        batch_size: samples per step.
        accumulate: micro-batches per step.
    """

    device: Literal["t4", "l4", "a10g", "a100", "h100", "cpu"] = "t4"
    condition: str = "C4"
    decoding: Literal["parallel", "autoregressive", "diffusion", "flow"] = "parallel"
    batch_size: int = 16
    accumulate: int = 4


@dataclass(frozen=True, kw_only=True)
class PlanOptions(StepOptions, ModelOptions):
    """A training of a pretrained backbone that is planned."""
