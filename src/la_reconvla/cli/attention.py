"""Commands that measure where words look: in one picture, or over held-out scenes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from la_reconvla.sim.options import IfGiven
from la_reconvla.text_table import tell


def look(
    backbone: str,
    image: Path,
    instruction: str,
    out: Path = Path("map.png"),
    against: IfGiven[str] = None,
    per_head: bool = False,
    layers: IfGiven[int] = None,
    device: str = "auto",
) -> None:
    """Draw which patches of an image an instruction attends to, and print the numbers.

    A run of C4 and its like shows what it masks there and how it reconstructs it, too.

    Args:
        backbone: a model's id on the hub, a model's folder, or a run folder.
        image: the image; one that is not square is resized to a square.
        instruction: the robot's instruction.
        out: PNG to write.
        against: a second instruction, for comparison.
        per_head: one row per layer, one column per head.
        layers: how many of the last layers are read; 3 by default. A run always uses its own.
        device: auto, cpu, cuda or mps.
    """
    from la_reconvla.study.look import look as run

    tell("\n".join(run(backbone, image, instruction, out, against, per_head, layers, device)))


def words(scenes: Path, out: Path, weights: tuple[str, ...] = ("base",), seed: int = 0) -> None:
    """Measure on held-out scenes whether the attention of words finds what they name, with controls.

    Args:
        scenes: folder written by data scenes.
        out: folder for words.json, words.md and words.png.
        weights: base, words-7x7 or files written by pretrain; the first is measured in detail.
        seed: random seed of the questions and of the random-weights control.
    """
    from la_reconvla.data.scenes import load_scenes
    from la_reconvla.study.words import measure_words

    for table in measure_words(weights, load_scenes(scenes, "train"), load_scenes(scenes, "test"), out, seed):
        Console().print(table)
    print(out / "words.md")
