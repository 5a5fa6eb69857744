"""Does any head look where the words say? Maps of each layer and head under the true instruction and under another.

    python benchmarks/heads_by_words.py runs/small/C1/seed* --demonstrations runs/small/demonstrations

On held-out frames, the overlap of the most attended quarter of the patches with the thing that the true instruction
names (AOS), and how often the most attended patch is on it (pointing), under the true words and under those of another
task, which name the other thing in the same picture. A map that follows the words loses much under other words; one
that shows where things usually are loses nothing. Rows are the instruction's and the action queries'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from run_samples import divided
from scipy.stats import sem, t

from la_reconvla.analysis.attention_overlap import measure
from la_reconvla.contracts import AttentionRows
from la_reconvla.data.samples import spread_indices
from la_reconvla.method.saliency import saliency
from la_reconvla.method.variants.attention_heads import per_head
from la_reconvla.sim.policies import swapped
from la_reconvla.study.parts import part_masks, part_patches
from la_reconvla.text_table import TextTable
from la_reconvla.training.checkpoint import load_policy

ROWS: tuple[AttentionRows, ...] = ("instruction", "actions")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    demonstrations: Path
    frames: int = 600
    held_out: float = 0.15


def maps(policy: Any, batch: Any, rows: AttentionRows) -> dict[str, np.ndarray]:
    """Name of each head, and of the mean of all -> scores of the patches [b n]."""
    with torch.no_grad():
        features = policy.features(batch, attention=rows)
    found, heads = {"mean of all": saliency(features.attention, features.token_mask)}, per_head(features)
    for layer, head in np.ndindex(*heads.shape[1:3]):
        found[f"layer {layer + 1}, head {head + 1}"] = heads[:, layer, head]
    return {name: scores.numpy() for name, scores in found.items()}


def measured(run: Path, options: Options) -> dict[tuple[str, str], dict[str, list[np.ndarray]]]:
    """Of each kind of row and head: overlap and pointing under (true words, other words), and the frames' scenes."""
    policy, config = load_policy(run)
    samples = divided(config, options.demonstrations, options.held_out)[1]
    said = {(episode.task or 0, episode.instruction) for episode in samples.demonstrations.episodes}
    other = {(task, true): wrong for task, true, wrong in swapped(said)}
    found: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
    for some in np.array_split(spread_indices(len(samples), options.frames), max(1, options.frames // 64)):
        batch, origins = samples.batch(some), [samples.origin(int(index))[0] for index in some]
        words = [other[e.task or 0, text] for e, text in zip(origins, batch.instructions, strict=True)]
        target = part_patches(part_masks(samples, some), policy.backbone.grid)[:, 0]
        for rows in ROWS:
            pair = maps(policy, batch, rows), maps(policy, replace(batch, instructions=words), rows)
            for name in pair[0]:
                true, wrong = (measure(each[name], target) for each in pair)
                place = found.setdefault((rows, name), {"aos": [], "pointing": [], "scene": []})
                place["aos"].append(np.stack([true.aos, wrong.aos]))
                place["pointing"].append(np.stack([true.pointing, wrong.pointing]))
                place["scene"].append(np.array([f"{e.task} {e.scene}" for e in origins]))
    return found


def row(of_runs: list[dict[str, list[np.ndarray]]]) -> tuple[str, ...]:
    """Means over runs and scenes, and the 95 % interval of what other words take, by Student's t over scenes."""
    scenes = np.concatenate([each for found in of_runs for each in found["scene"]])
    aos, pointing = (
        np.concatenate([x for found in of_runs for x in found[name]], axis=1) for name in ("aos", "pointing")
    )
    lost = aos[0] - aos[1]
    of_scenes = np.array([np.nanmean(lost[scenes == scene]) for scene in np.unique(scenes)])
    low, high = t.interval(0.95, len(of_scenes) - 1, of_scenes.mean(), sem(of_scenes))
    means = [np.nanmean(values) for values in (*aos, *pointing)]
    shown = f"{of_scenes.mean():+.3f} ({low:+.3f} to {high:+.3f})"
    return f"{means[0]:.3f}", f"{means[1]:.3f}", shown, f"{means[2]:.2f}", f"{means[3]:.2f}"


def main() -> None:
    """A row for each head, means over all runs."""
    options = tyro.cli(Options, description=__doc__)
    found = [measured(run, options) for run in options.runs]
    rows = [(*key, *row([each[key] for each in found])) for key in found[0]]
    header = ("rows", "map", "AOS", "under other words", "difference (95 %)", "pointing", "under other words")
    print(TextTable(f"{len(found)} runs", header, rows).markdown())


if __name__ == "__main__":
    main()
