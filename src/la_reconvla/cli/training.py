"""Commands that train: one policy, or the small backbone before there are policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from la_reconvla.cli.options import Group
from la_reconvla.sim.options import IfGiven
from la_reconvla.study.options import PolicyChanges, ScheduleChanges
from la_reconvla.training.options import LaunchOptions, PretrainOptions


def train(
    demonstrations: Path,
    out: Path,
    policy: Group[PolicyChanges],
    training: Group[ScheduleChanges],
    several: Group[LaunchOptions],
    condition: str = "C4",
    seed: int = 0,
    preset: str = "small",
    init_from: IfGiven[str] = None,
) -> None:
    """Train one policy on a folder of demonstrations, LIBERO's own files included.

    Args:
        demonstrations: folder with *_demo.hdf5 files, a LeRobotDataset, or a dataset in RLDS.
        out: run folder; an interrupted run resumes in it, a finished one goes on to more steps.
        policy: what is trained, where it differs from the preset.
        training: how it is trained, where it differs from the preset.
        several: several processes that train it.
        condition: arm, for example C1 or C4.
        seed: random seed of weights, batches and masks.
        preset: source of backbone, decoder and schedule; the options below override single values.
        init_from: a run whose weights this one starts from, on other data or another robot; what fits is taken.
    """
    from la_reconvla.training.launch import processes

    with processes(several, training.device) as group:
        from la_reconvla.study.train_cells import train_one

        train_one(demonstrations, out, condition, seed, preset, vars(policy) | vars(training), init_from, group)
        if group.is_main:
            print(out)


def pretrain(
    scenes: Path,
    out: Path,
    schedule: Group[PretrainOptions],
    demonstrations: tuple[Path, ...] = (),
    hold_out: IfGiven[tuple[str, ...]] = None,
    objective: Literal["contrast", "captioning", "masked-words"] = "contrast",
    patch: int = 16,
    stem: Literal["patch", "conv", "efficientnet-lite0"] = "patch",
    weights: IfGiven[str] = None,
    wrist: bool = False,
) -> None:
    """Pretrain the small backbone on captions and, optionally, on demonstrations. Rerun the command to resume.

    Args:
        scenes: folder written by data scenes.
        out: folder for weights and curves; pass its backbone.safetensors to --weights. With demonstrations it is also
            a run for eval.
        schedule: length and optimizer of the training.
        demonstrations: folders written by data collect, of tasks that no study tests; none for captions only.
        hold_out: tasks, as suite/task; episodes with their instructions are left out. By default those that the
            presets test, and some more of Object and Goal.
        objective: loss on pictures and captions.
        patch: side of a patch in pixels; images are 112 pixels wide.
        stem: patch embedding: one linear map per patch, four convolutions, or the first layers of a network trained
            on ImageNet.
        weights: initial weights, a name or file as for --weights of train; random by default.
        wrist: use the demonstrations' wrist camera too; captions have none.
    """
    from la_reconvla.data.scenes import load_scenes
    from la_reconvla.progress import progress
    from la_reconvla.training.pretraining import PretrainConfig
    from la_reconvla.training.pretraining import pretrain as run
    from la_reconvla.training.pretraining_data import STUDIED, base_samples, instructions_of
    from la_reconvla.training.pretraining_objectives import OBJECTIVES
    from la_reconvla.training.start_weights import pinned

    size = replace(PretrainConfig().backbone, patch=patch, stem=stem, weights=weights)
    size = pinned(replace(size, chunk=24 if demonstrations else size.chunk, wrist=wrist))
    config = PretrainConfig(size, OBJECTIVES[objective], **vars(schedule))
    pictures = load_scenes(scenes, "train")
    samples = held_out = None
    if demonstrations:
        samples, held_out = base_samples(demonstrations, size, instructions_of(hold_out or STUDIED))
    with progress("Pretraining", total=config.steps, unit="steps") as bar:
        print(run(pictures, config, out, bar, samples, held_out))
