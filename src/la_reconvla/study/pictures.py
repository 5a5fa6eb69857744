"""Pictures and videos of a study for its report: maps and reconstructions on held-out frames, films of rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from la_reconvla import drawing, layout
from la_reconvla.analysis.results import Picture, Video
from la_reconvla.data.boxes import annotator
from la_reconvla.data.samples import Samples, spread_indices
from la_reconvla.episodes import EpisodeRecord
from la_reconvla.storage import atomic_write
from la_reconvla.study.cells import Cell
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.timelines import draw
from la_reconvla.training.checkpoint import load_policy

FRAMES = 4  # in the attention grid


def pictures(study: Path, config: StudyConfig, cells: Sequence[Cell], samples: Samples) -> Iterator[Picture]:
    """What each arm's mask follows, on the same held-out frames, and its reconstructions there."""
    chosen = spread_indices(len(samples), FRAMES + 2)[1:-1]
    batch = samples.batch(chosen)
    images, told = batch.images.permute(0, 2, 3, 1).numpy(), batch.instructions
    seed, maps, masks = config.seeds[0], {}, {}
    grid = (0, 0)
    for cell in cells:
        arm, (policy, _) = cell.condition, load_policy(cell.folder)
        boxed = batch if arm.annotation_free else samples.annotated(annotator(config.gaze)).batch(chosen)
        found = draw(policy, arm, boxed, seed)
        grid, maps[arm.id] = found.grid, found.saliency
        if found.wanted is None or found.painted is None:
            continue
        if found.mask is None:
            strip = drawing.crop_strip(images, found.wanted, found.painted, told)
        else:
            followed = found.saliency if arm.saliency is not None else None
            strip = drawing.reconstruction_strip(images, found.mask, found.painted, grid, told, followed)
            if followed is not None:
                masks[arm.id] = found.mask
        name = f"{layout.MAPS}/reconstruction_{arm.id}.png"
        _write(study / name, strip)
        caption = f"{arm.id}, {arm.name}: image, what the decoder was shown, prediction"
        yield Picture(name, "reconstruction", caption)
    name = f"{layout.MAPS}/attention.png"
    _write(study / name, drawing.attention_grid(images, told, maps, grid, masks))
    yield Picture(name, "attention", f"Attention on held-out frames, seed {seed}")


def videos(study: Path, cells: Sequence[Cell], episodes: Callable[[Path], list[EpisodeRecord]]) -> Iterator[Video]:
    """Films of the rollouts of these cells; `episodes` reads the records of a folder."""
    for cell in cells:
        for record in episodes(cell.folder):
            if record.video is not None:
                path = (cell.folder / record.video).relative_to(study)
                arm, told = cell.condition.id, record.start.instruction
                yield Video(str(path), f"{arm}: {told}", record.success, arm, record.start.id, told)


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
