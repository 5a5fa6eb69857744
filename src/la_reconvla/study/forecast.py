"""How long the parts of a study take, roughly, before they run: for the time that is left in all.

The rates are those of the preset ``quick`` on one core (docs/results/quick.md). As soon as a part has ended, what it
took on this machine, against what was said of it, corrects those that follow and do the same kind of work: a GPU trains
faster, and simulates no faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from la_reconvla import layout
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.robot import Quality
from la_reconvla.sim.collection_folder import finished_episodes
from la_reconvla.sim.tasks import MAX_STEPS, base_of
from la_reconvla.sim.track import EVERY
from la_reconvla.storage import read_jsonl
from la_reconvla.study.cells import Cell, OfficialStarts
from la_reconvla.study.films import STARTS
from la_reconvla.study.presets import StudyConfig
from la_reconvla.training.run_state import trained

PARTS: tuple[str, ...] = ("collection", "training", "rollouts", "held-out frames", "statistics and pictures")
DEMONSTRATION, SAMPLE, EPISODE, MEASURED = 5.9, 0.025, 4.1, 13.0  # seconds of one core
HEAD_SAMPLE = 0.0017  # the same, of a sample for a head that is trained first (docs/results/dose.md)
DRAWN = 8.0  # seconds, without the films
PICTURE: Mapping[Quality, float] = {"fast": 0.06, "official": 0.13}  # of a film, with where the target is in it
LONG = 300  # control steps of an episode of another suite than LIBERO's
BESIDE = 5  # floors and references that are rolled out beside the cells
KINDS: Mapping[str, str] = dict(zip(PARTS, ("simulator", "network", "simulator", "network", "drawing"), strict=True))
TELLING = 10.0  # seconds that a part must have been said to take; one with less to do says nothing of the machine


def forecast(
    config: StudyConfig, folder: Path, cells: Sequence[Cell], places: Sequence[OfficialStarts], workers: int
) -> dict[str, float] | None:
    """Seconds of each part in a folder as it is now; None for a backbone whose rate is not known.

    Args:
        config: what is run.
        folder: of the study.
        cells: all of it; what is on disk takes no time.
        places: where it is evaluated beside its own starts.
        workers: processes.
    """
    if isinstance(config.backbone, Pretrained):
        return None
    spent = work(config, folder, cells, places)
    return {part: side_by_side(part, seconds, workers) for part, seconds in spent.items()}


def side_by_side(part: str, seconds: float, workers: int) -> float:
    """What so many workers take for `seconds` of one core. Of the last part they share the films alone."""
    alone = DRAWN if part == PARTS[-1] else 0.0
    return alone + (seconds - alone) / workers


def rollouts(config: StudyConfig, cells: Sequence[Cell], places: Sequence[OfficialStarts]) -> int:
    """Episodes of a study, floors and references included; arguments as of `forecast`."""
    starts = len(config.tasks) * config.episodes + sum(len(place.tasks) * place.episodes for place in places)
    return starts * (len(cells) + BESIDE)


def pictures(config: StudyConfig, folder: Path) -> int:
    """Pictures of the films that are not drawn yet, if all episodes go on to their limit."""
    starts = min(STARTS, len(config.tasks) * config.episodes)
    missing = starts * len(config.conditions) - len(list((folder / layout.FILMS).glob("*.mp4")))
    return max(0, missing) * (1 + MAX_STEPS.get(base_of(config.suite), LONG) // EVERY)


def work(
    config: StudyConfig, folder: Path, cells: Sequence[Cell], places: Sequence[OfficialStarts]
) -> dict[str, float]:
    """Seconds of each part on one core of the machine that the rates come from; arguments as of `forecast`."""
    untrained = [cell.condition for cell in cells if not trained(cell.folder)]
    per_row = SAMPLE * config.train.steps * len(untrained) + HEAD_SAMPLE * sum(arm.head_start for arm in untrained)
    unmeasured = sum(not (cell.folder / layout.HELD_OUT).exists() for cell in cells)
    recorded = finished_episodes(folder / layout.DEMONSTRATIONS) * len(config.tasks)
    recorded = recorded or len(list((folder / layout.DEMONSTRATIONS).glob("shards/*/*.hdf5")))
    rolled_out = sum(len(read_jsonl(path)) for path in folder.rglob(layout.EPISODES))
    seconds = (
        DEMONSTRATION * max(0, len(config.tasks) * config.demos - recorded),
        config.train.batch_size * per_row,
        EPISODE * max(0, rollouts(config, cells, places) - rolled_out),
        MEASURED * unmeasured,
        DRAWN + PICTURE[config.quality] * pictures(config, folder),
    )
    return dict(zip(PARTS, seconds, strict=True))


def afterwards(part: str, said: Mapping[str, float], took: Mapping[str, float]) -> float:
    """Seconds of all that follows a part.

    Args:
        part: one of `PARTS`.
        said: see `forecast`.
        took: seconds of the parts that have ended since then.
    """

    def slower(kind: str) -> float:
        """How many times as long as was said work of this kind took; 1 where none is done."""
        done = [name for name in took if KINDS[name] == kind and said[name] >= TELLING]
        return sum(took[name] for name in done) / sum(said[name] for name in done) if done else 1.0

    return sum(slower(KINDS[name]) * said[name] for name in PARTS[PARTS.index(part) + 1 :])
