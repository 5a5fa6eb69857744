"""Commands that make data: demonstrations, boxes around their targets, scenes to learn words from."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from la_reconvla.cli.options import Flat, Group
from la_reconvla.errors import UserError
from la_reconvla.sim.options import EpisodeOptions, FrameOptions, RecordingOptions, RenderOptions, ScenesOptions
from la_reconvla.text_table import tell


def collect(recording: Flat[RecordingOptions], episode: Group[EpisodeOptions], frame: Group[FrameOptions]) -> None:
    """Record demonstrations of the scripted expert in LIBERO's HDF5 layout. Rerun the command to resume.

    Args:
        recording: output folder and processes.
        episode: which episodes are recorded.
        frame: what is recorded of each step.
    """
    from la_reconvla.sim.collect import collect as run
    from la_reconvla.sim.collection_config import CollectConfig

    learner = None
    if episode.correct is not None:
        from la_reconvla.training.checkpoint import find_run
        from la_reconvla.training.trained_policy import Trained

        learner = Trained(find_run(episode.correct))
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
    from la_reconvla.training.loop import pick_device

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
