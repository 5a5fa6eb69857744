"""Commands that make data: demonstrations, boxes around their targets, scenes to learn words from."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from la_reconvla.cli.options import Flat, Group
from la_reconvla.data.lerobot_layout import PictureKind
from la_reconvla.errors import UserError
from la_reconvla.robot import Orientation
from la_reconvla.sim.options import (
    EpisodeOptions,
    FrameOptions,
    IfGiven,
    RecordingOptions,
    RenderOptions,
    ScenesOptions,
)
from la_reconvla.text_table import tell


def collect(
    recording: Flat[RecordingOptions],
    episode: Group[EpisodeOptions],
    frame: Group[FrameOptions],
    cluster: IfGiven[str] = None,
) -> None:
    """Record demonstrations of the scripted expert in LIBERO's HDF5 layout. Rerun the command to resume.

    Args:
        recording: output folder and processes.
        episode: which episodes are recorded.
        frame: what is recorded of each step.
        cluster: record on a cluster of Ray, auto or ray://HOST:10001 (docs/ray.md).
    """
    from la_reconvla.execution.on_ray import cluster as jobs_on
    from la_reconvla.sim.collect import collect as run
    from la_reconvla.sim.collection_config import CollectConfig

    learner = None
    if episode.correct is not None:
        from la_reconvla.training.checkpoint import find_run
        from la_reconvla.training.trained_policy import Trained

        learner = Trained(find_run(episode.correct))
    with jobs_on(cluster):
        tell(str(run(CollectConfig(**vars(recording), **vars(episode), **vars(frame), learner=learner))))


def render(source: Positional[Path], out: Positional[Path], options: Flat[RenderOptions]) -> None:
    """Draw recordings again from their states: another size, the wrist camera, instance maps. Rerun to resume.

    Works on LIBERO's own demonstrations, which so get boxes of the target, and on those of data collect.

    Args:
        source: folder with *_demo.hdf5 files.
        out: folder to write to.
        options: what to draw.
    """
    from la_reconvla.sim.render import render as run

    found = run(source, out, options)
    tell(
        f"{out}: {found.episodes} episodes; pictures differ from the recorded ones by at most {found.difference:.1f} "
        "of 255 on average over an episode"
    )


def import_episodes(
    episodes: Positional[Path],
    out: Path,
    rate: float,
    orientation: Orientation,
    cameras: tuple[str, ...] = (),
    binary: tuple[str, ...] = (),
    instruction: IfGiven[str] = None,
) -> None:
    """Make demonstrations of your own robot's episodes, a folder each (docs/own-robot.md). Stopped, it goes on.

    Args:
        episodes: folder that holds a folder for each episode.
        out: folder of the *_demo.hdf5 files.
        rate: control steps a second.
        orientation: how the pictures stand: upright, mirrored (left and right exchanged) or upside_down.
        cameras: names, the main one first; by default all that the first episode has, if one is called main.
        binary: names of the action's dimensions that have two values only, as a gripper.
        instruction: of the episodes that have no instruction.txt.
    """
    from la_reconvla.data.importing import Import
    from la_reconvla.data.importing import import_episodes as run

    for line in run(Import(episodes, out, rate, orientation, cameras, binary, instruction)):
        print(line)


def check(demonstrations: Positional[Path], sheet: IfGiven[Path] = None) -> None:
    """Say what a folder of demonstrations holds, what in it looks wrong, and draw a sheet of its pictures.

    Args:
        demonstrations: folder with *_demo.hdf5 files, a LeRobotDataset, or a dataset in RLDS.
        sheet: the PNG; by default contact-sheet.png in that folder.
    """
    from la_reconvla.data.checking import check as run

    for line in run(demonstrations, sheet or demonstrations / "contact-sheet.png"):
        print(line)


def convert(source: Positional[Path], target: Positional[Path], pictures: PictureKind = "png") -> None:
    """Write demonstrations as a LeRobotDataset, or a LeRobotDataset as demonstration files. It says what is not kept.

    Args:
        source: a LeRobotDataset; or a folder with *_demo.hdf5 files, or a dataset in RLDS.
        target: the folder to write. A LeRobotDataset appears when it is complete; HDF5 files, stopped, go on.
        pictures: of a LeRobotDataset: png, without loss, or a video, av1 or h264.
    """
    from la_reconvla.data.converting import convert as run

    for line in run(source, target, pictures):
        print(line)


def boxes(
    demonstrations: Positional[Path],
    out: Path,
    source: str = "masks",
    threshold: float = 0.25,
    every: int = 1,
    device: str = "auto",
) -> None:
    """Write the target's box in every frame, for arms that use it. Rerun the command to resume.

    Args:
        demonstrations: folder with *_demo.hdf5 files.
        out: file of boxes to write, *.jsonl.
        source: masks (the simulator's instance maps), or a zero-shot detector as an id on the hub or a folder.
        threshold: minimum score of a detector's box.
        every: run the detector on every n-th recorded frame only.
        device: where the detector runs: auto, cpu, cuda or mps.
    """
    from la_reconvla.data.boxes import BOXES_SUFFIX, Masks, boxes_summary, write_boxes
    from la_reconvla.data.detector import Detector
    from la_reconvla.data.hdf5 import open_demonstrations
    from la_reconvla.progress import progress
    from la_reconvla.training.devices import pick_device

    if out.suffix != BOXES_SUFFIX:
        raise UserError(f"{out}: a file of boxes is called *{BOXES_SUFFIX}, which is how training knows it: name it so")
    opened = open_demonstrations(demonstrations)
    annotator = Masks()
    if source != annotator.label:
        annotator = Detector(source, threshold=threshold, every=every, device=str(pick_device(device)))
    with progress("Annotating", total=len(opened.episodes), unit="episodes") as bar:
        write_boxes(opened, annotator, out, bar)
    tell(boxes_summary(opened, out))


def scenes(options: Flat[ScenesOptions]) -> None:
    """Render LIBERO's arenas with random objects, as data for captions. Rerun the command to resume."""
    from la_reconvla.sim.scenes import ScenesConfig, render

    tell(f"{options.out}: {render(ScenesConfig(**vars(options)))} scenes")
