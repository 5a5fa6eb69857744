"""The options of the commands that study policies. Light: the command line reads them for its help.

The classes of changes name what `la_reconvla.study.presets.StudyConfig.changed` takes: fields of the study, of its
backbone, head and schedule, with None for "as the preset says", and a few options that choose several fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from tyro.conf import arg

from la_reconvla.data.starts import PlacementKind
from la_reconvla.episodes import View
from la_reconvla.robot import Fit, StateChoice

T = TypeVar("T")
UNTRAINED = ("expert", "random")  # what the command eval takes beside runs
PerPreset = Annotated[T | None, arg(help_behavior_hint="(default: the preset's)")]
IfGiven = Annotated[T | None, arg(help_behavior_hint="(optional)")]


@dataclass(frozen=True, kw_only=True)
class PolicyChanges:
    """What is trained, where it differs from the preset.

    Attributes:
        backbone: a pretrained one in the preset's place: an id on the hub or a folder.
        weights: what the preset's small backbone starts from: base, words-7x7, a file that pretrain wrote, or none.
        lora_rank: of a pretrained backbone's adapters; 0 trains it without.
        quantize: nf4 keeps a pretrained backbone's linear layers in 4 bits; needs a GPU.
        dtype: of a pretrained backbone's weights.
        chunk: actions decoded and executed at once; 1 is the published setting.
        decoding: parallel, all actions of a chunk in one pass; autoregressive, token by token as RT-2 and OpenVLA do.
        proprio: robot state: none (published), the gripper's width (LIBERO's), or all of it.
        cameras: the main camera, and with a second name another one beside it; by default the data's first.
        fit: of pictures that are not square: squeeze them, or pad them with black.
        wrist: use the data's second camera too, LIBERO's wrist camera.
        max_tokens: longest instruction in tokens.
        norm_pixels: reconstruct pixels normalised in each patch.
        latents: what diffusion heads draw: latents of this VAE (id on the hub or folder) in the place of pixels.
    """

    backbone: PerPreset[str] = None
    weights: PerPreset[str] = None
    lora_rank: PerPreset[int] = None
    quantize: PerPreset[Literal["nf4"]] = None
    dtype: PerPreset[Literal["fp32", "bf16", "fp16"]] = None
    chunk: PerPreset[int] = None
    decoding: PerPreset[Literal["parallel", "autoregressive"]] = None
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
        shift: move training pictures by up to so many pixels at random.
        gaze: for arms that are given the target's place: masks of the simulator, or a file that data boxes wrote.
        device: of training and policies: auto, cpu, cuda or mps.
    """

    steps: PerPreset[int] = None
    held_out: PerPreset[float] = None
    shift: PerPreset[int] = None
    gaze: PerPreset[str] = None
    device: PerPreset[str] = None


@dataclass(frozen=True, kw_only=True)
class ScheduleChanges(TrainingChanges):
    """How one policy is trained, where that differs from the preset.

    Attributes:
        batch_size: samples per step.
        accumulate: micro-batches that a step's samples are divided into, for less memory.
        learning_rate: peak of the schedule.
    """

    batch_size: PerPreset[int] = None
    accumulate: PerPreset[int] = None
    learning_rate: PerPreset[float] = None


@dataclass(frozen=True, kw_only=True)
class StudyChanges:
    """What is compared, where it differs from the preset.

    Attributes:
        seeds: training seeds; more may join a finished study.
        conditions: arms, for example C1 C2 C4 (a name that is like none lists all); more may join a finished study.
        grid: all arms of the grid: what is reconstructed, and by which head.
        suite: LIBERO suite that is learnt, for example libero_goal; give its tasks too.
        tasks: indices of the suite's tasks.
        placement: where things are put, in training and evaluation: wide, or LIBERO's own initial states.
        demos: demonstrations per task.
        episodes: evaluation episodes per task; more may join a finished study.
        also_official: evaluate on so many of LIBERO's own initial states per task too; may join a finished study.
        elsewhere: other suites to evaluate everything on, for example libero_spatial_lan; may join a finished study.
        elsewhere_episodes: official states of each of their tasks; 10 in the presets.
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
        suite: LIBERO suite.
        tasks: indices of its tasks; by default those that the policies were trained on, also for what LIBERO-PRO made
            of their suite, all of another suite, and for expert and random 0 to 2.
        placement: kind of starts; LIBERO-PRO's suites and libero_10 have official ones only.
    """

    suite: str = "libero_spatial"
    tasks: IfGiven[tuple[int, ...]] = None
    placement: PlacementKind = "wide"


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """What rolls out.

    Attributes:
        workers: processes; 0 takes one per core.
        device: of the policies: auto, cpu, cuda or mps.
        allow_any_mujoco: evaluate on a MuJoCo with which scores are not comparable.
    """

    workers: int = 0
    device: str = "auto"
    allow_any_mujoco: bool = False


@dataclass(frozen=True, kw_only=True)
class FloorOptions:
    """What the policy is measured against.

    Attributes:
        view: what a trained policy is shown: the true view, or, for its floors, a grey image or a wrong instruction.
        floors: evaluate the policy's floors on the same starts too: grey image, wrong instruction, and, as far as they
            are there, the run without image beside it and blind replay.
        demonstrations: what blind replay replays; by default those of the study that the run is part of.
    """

    view: View = "true"
    floors: bool = False
    demonstrations: IfGiven[Path] = None


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """How much of one policy is rolled out, and where to.

    Attributes:
        episodes: starts of each task.
        out: where episodes.jsonl and videos go; by default a folder inside the run.
        allow_train_starts: take the starts that training takes (wide: the training placements; official: from number 0
            up) and say how many of them this policy was trained on.
    """

    episodes: int = 10
    out: IfGiven[Path] = None
    allow_train_starts: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RolloutOptions, StartOptions, FloorOptions, MachineOptions):
    """How a policy is rolled out."""


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How much of two policies is rolled out, and where to.

    Attributes:
        out: folder of comparison.json and of the records, which are those of the command eval.
        episodes: starts of each task at most, up to 500 altogether; not to be changed after the first rollout.
    """

    out: Path
    episodes: int = 50


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """What is filmed.

    Attributes:
        suite: LIBERO suite.
        task: index of a task; by default the first one that the first run was trained on.
        placement: kind of start.
        episode: number of the start among the task's test starts, as in evaluations.
        size: rows and columns of each picture.
        allow_any_mujoco: film on a MuJoCo with which scores are not comparable.
    """

    suite: str = "libero_spatial"
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
        backbone: id on the hub, or a folder with a config.json.
        chunk: actions decoded at once.
        lora_rank: rank of the adapters; 0 trains the language model in full.
        quantize: nf4 keeps the linear layers in 4 bits.
        dtype: of the weights that stay; auto takes the half precision that the device has.
        checkpointing: compute layers again in the backward pass.
        train_vision: train the vision tower too.
        last: train only so many of the last language layers.
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
        device: where; cpu is this machine.
        condition: arm, for example C1 or C4.
        batch_size: samples per step.
        accumulate: micro-batches that they are divided into.
    """

    device: Literal["t4", "l4", "a10g", "a100", "h100", "cpu"] = "t4"
    condition: str = "C4"
    batch_size: int = 16
    accumulate: int = 4


@dataclass(frozen=True, kw_only=True)
class PlanOptions(StepOptions, ModelOptions):
    """A training of a pretrained backbone that is planned."""
