"""Commands that train: one policy, or the small backbone before there are policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from la_reconvla.cli.options import Group
from la_reconvla.study.options import IfGiven, PolicyChanges, ScheduleChanges
from la_reconvla.training.options import PretrainOptions


def train(
    demonstrations: Path,
    out: Path,
    policy: Group[PolicyChanges],
    training: Group[ScheduleChanges],
    condition: str = "C4",
    seed: int = 0,
    preset: str = "small",
) -> None:
    """Train one policy on a folder of demonstrations, LIBERO's own files included.

    Args:
        demonstrations: folder with *_demo.hdf5 files, or a LeRobotDataset.
        out: run folder; a killed run goes on in it.
        policy: what is trained, where it is not to be as the preset says.
        training: how it is trained, where that is not to be as the preset says.
        condition: arm, for example C1 or C4.
        seed: of weights, batches and masks.
        preset: where backbone, decoder and schedule come from; the options below replace single numbers.
    """
    from la_reconvla.study.train_cells import train_one

    train_one(demonstrations, out, condition, seed, preset, vars(policy) | vars(training))
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
) -> None:
    """Teach the small backbone words from captions, and hands from demonstrations. Stopped, it goes on.

    Args:
        scenes: folder that the command data scenes wrote.
        out: folder of weights and curves; its backbone.safetensors is what --weights takes. With demonstrations it is
            also a run that eval takes.
        schedule: for how long, and how.
        demonstrations: folders that data collect wrote, of tasks that no study is to test; none for words alone.
        hold_out: tasks, as suite/task, whose instructions must not be demonstrated: such episodes are left out. By
            default those that the presets test, and some more of Object and Goal.
        objective: what is minimised over pictures and sentences.
        patch: side of a patch in pixels; pictures have 112.
        stem: how pixels become patches: one linear map per patch, four convolutions, or the first part of a network
            trained on ImageNet.
        weights: what to go on from: a name or file as the option --weights of train takes it; random ones by default.
    """
    from la_reconvla.data.scenes import load_scenes
    from la_reconvla.progress import progress
    from la_reconvla.training.pretraining import PretrainConfig
    from la_reconvla.training.pretraining import pretrain as run
    from la_reconvla.training.pretraining_data import STUDIED, base_samples, instructions_of
    from la_reconvla.training.pretraining_objectives import OBJECTIVES
    from la_reconvla.training.start_weights import pinned

    size = replace(PretrainConfig().backbone, patch=patch, stem=stem, weights=weights)
    size = pinned(replace(size, chunk=24 if demonstrations else size.chunk))
    config = PretrainConfig(size, OBJECTIVES[objective], **vars(schedule))
    pictures = load_scenes(scenes, "train")
    samples = held_out = None
    if demonstrations:
        samples, held_out = base_samples(demonstrations, size, instructions_of(hold_out or STUDIED))
    with progress("Pretraining", total=config.steps, unit="steps") as bar:
        print(run(pictures, config, out, bar, samples, held_out))
