"""The ablation: collect, train every cell, roll out, measure, judge, report. Every part that is on disk is skipped."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from la_reconvla.checkpoint import WEIGHTS, PolicyConfig, load_policy
from la_reconvla.conditions import NO_IMAGE, Condition, condition
from la_reconvla.data.hdf5 import Demonstrations, open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.decoder import unpatchify
from la_reconvla.method.mask import AttentionMask, masked_count
from la_reconvla.processes import worker_pool
from la_reconvla.progress import progress
from la_reconvla.randomness import generator
from la_reconvla.sim.collect import CollectConfig, collect, default_workers
from la_reconvla.sim.policies import Replay, Scripted, Trained, Uniform, swapped
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.sim.tasks import load_task
from la_reconvla.storage import locked, read_json, read_jsonl, write_json
from la_reconvla.study import figures
from la_reconvla.study.evaluate import EPISODES, Evaluation, evaluate, evaluation_starts, pending
from la_reconvla.study.facts import commit, hardware, versions
from la_reconvla.study.heldout import UNIT, measure_run, spread_indices
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.study.report import terminal_summary, write_report
from la_reconvla.study.results import (
    Arm,
    Evidence,
    FloorEvidence,
    Picture,
    Results,
    Study,
    Video,
    build,
    write_results,
)
from la_reconvla.train import METRICS, pick_device, train

HELD_OUT = "held_out.json"
SHOWN = 4  # frames in the attention grid


@dataclass(frozen=True)
class Cell:
    """One condition with one seed and the folder that it lives in."""

    condition: Condition
    seed: int
    folder: Path


class Ablation:
    """One study in one folder.

    Args:
        config: what to run.
        folder: where; a study of another configuration there is refused.
        workers: processes, one simulator or one training each.
    """

    def __init__(self, config: StudyConfig, folder: Path, workers: int):
        self.config, self.folder, self.workers = config, folder, max(1, workers)
        arms = [condition(id).with_head(config.head) for id in config.conditions]
        self.tasks = [load_task(config.suite, index) for index in config.tasks]
        self.cells = [
            Cell(arm, seed, folder / arm.id / f"seed{seed}") for seed in config.seeds for arm in (*arms, NO_IMAGE)
        ]
        self.arms = arms
        self.collection = CollectConfig(
            suite=config.suite,
            tasks=config.tasks,
            demos=config.demos,
            out=self.demonstrations,
            placement=config.placement,
            quality=config.quality,
            image_size=config.backbone.image_size,
            frame_stride=config.frame_stride,
            wrist=config.backbone.wrist,
            workers=self.workers,
        )
        pick_device(config.train.device)
        self.console = Console(stderr=True)

    @property
    def demonstrations(self) -> Path:
        """Folder of the demonstrations."""
        return self.folder / "demonstrations"

    def run(self) -> Results:
        """Everything, from the simulator to the report.

        Raises:
            UserError: with the way out, before long work where that is possible.
        """
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        with locked(self.folder):
            self._claim(started)
            self._timed("collection", self._collect)
            self._timed("training", self._train)
            self._timed("rollouts", self._evaluate)
            self._timed("held-out frames", self._measure)
            results = self._results()
            write_results(self.folder / "results.json", results)
            write_report(self.folder)
        self.console.print(terminal_summary(results))
        return results

    # ------------------------------------------------------------ parts

    def _claim(self, started: str) -> None:
        path, mine = self.folder / "study.json", json.loads(json.dumps(asdict(self.config)))
        if path.exists():
            theirs = read_json(path)["config"]
            if differing := sorted(key for key in mine if mine[key] != theirs.get(key)):
                raise UserError(
                    f"{self.folder} holds a study of another configuration (different: {', '.join(differing)}): "
                    "choose another --out, or delete that folder"
                )
            return
        write_json(path, {"config": mine, "started": started, "command": " ".join(sys.argv), "commit": commit()})

    def _timed(self, name: str, part: Callable[[], None]) -> None:
        begun = time.perf_counter()
        part()
        path = self.folder / "times.json"
        times = read_json(path) if path.exists() else {}
        times[name] = round(times.get(name, 0.0) + time.perf_counter() - begun, 1)  # a resumed part adds up
        write_json(path, times)

    def _collect(self) -> None:
        collect(self.collection)

    def _divided(self) -> tuple[Demonstrations, Demonstrations]:
        return open_demonstrations(self.demonstrations).divide(self.config.held_out)

    def _train(self) -> None:
        training, held_out = self._divided()
        todo = [cell for cell in self.cells if not (cell.folder / WEIGHTS).exists()]
        todo.sort(key=lambda cell: cell.condition.reconstruction is None)  # the long ones first
        steps = self.config.train.steps
        with progress("Training", total=len(todo) * steps, unit="steps", console=self.console) as bar:
            if not todo:
                return
            context = multiprocessing.get_context("spawn")
            ticker = bar.ticker(context)
            _shared = (self.config, training, held_out)
            with worker_pool(self.workers, _receive, (_shared, ticker)) as pool:
                for future in as_completed([pool.submit(_train_cell, cell) for cell in todo]):
                    future.result()

    def _evaluate(self) -> None:
        evaluations, starts, settings = self._evaluations(), self._starts(), self._settings()
        count = pending(evaluations, starts)
        with progress("Rollouts", total=count, unit="episodes", console=self.console) as bar:
            evaluate(evaluations, starts, settings, self.workers, bar.advance)
        if self.config.also_official:
            official = self._official()
            starts = self._starts("official")
            with progress("Official states", pending(official, starts), "episodes", console=self.console) as bar:
                evaluate(official, starts, settings, self.workers, bar.advance)

    def _measure(self) -> None:
        todo = [cell for cell in self.cells if not (cell.folder / HELD_OUT).exists()]
        with progress("Held-out frames", total=len(todo), unit="policies", console=self.console) as bar:
            samples = self._held_out_samples()
            indices = spread_indices(samples, self.config.frames)
            for cell in todo:
                write_json(cell.folder / HELD_OUT, measure_run(cell.folder, samples, indices, self._swaps()))
                bar.advance(note=cell.condition.id)

    # ------------------------------------------------------------ what they need

    def _held_out_samples(self) -> Samples:
        b = self.config.backbone
        return Samples(self._divided()[1], b.image_size, b.chunk, wrist=b.wrist, proprio=b.proprio)

    def _settings(self) -> EnvSettings:
        c = self.config
        return EnvSettings(c.backbone.image_size, c.backbone.wrist, c.backbone.proprio != "none", c.quality)

    def _starts(self, placement: str | None = None):
        c = self.config
        official = placement == "official"
        return evaluation_starts(
            c.suite,
            c.tasks,
            "official" if official else c.placement,
            c.also_official if official else max(c.episodes, c.floor_episodes),
            trained_on=frozenset(open_demonstrations(self.demonstrations).starts),
            cache=self.folder / "placements",
        )

    def _swaps(self):
        said = {(e.task or 0, e.instruction) for e in open_demonstrations(self.demonstrations).episodes}
        return swapped(said | {(start.task, start.instruction) for start in self._starts()})

    def _evaluations(self) -> list[Evaluation]:
        c = self.config
        many, few = c.episodes * len(c.tasks), c.floor_episodes * len(c.tasks)
        result = []
        for cell in self.cells:
            label = {"condition": cell.condition.id, "seed": cell.seed}
            count = few if cell.condition is NO_IMAGE else many
            films = cell.condition is not NO_IMAGE
            result.append(Evaluation(cell.folder, label, Trained(cell.folder), count, films, c.backbone.grid))
            if cell.condition.id == c.floor_arm:
                for view in ("grey_image", "wrong_instruction"):
                    policy = Trained(cell.folder, view, self._swaps())
                    folder = self.folder / "floors" / view / f"seed{cell.seed}"
                    result.append(Evaluation(folder, {**label, "floor": view}, policy, few))
        alone = {"seed": None, "condition": None}
        floors, references = self.folder / "floors", self.folder / "references"
        return [
            *result,
            Evaluation(floors / "blind_replay", {**alone, "floor": "blind_replay"}, Replay(self.demonstrations), few),
            Evaluation(references / "expert", {**alone, "condition": "expert"}, Scripted(), few),
            Evaluation(references / "random", {**alone, "condition": "random"}, Uniform(), few),
        ]

    def _official(self) -> list[Evaluation]:
        """The same policies and floors on official states, into a folder of their own."""
        return [
            Evaluation(self.folder / "official" / e.folder.relative_to(self.folder), e.label, e.policy)
            for e in self._evaluations()
        ]

    # ------------------------------------------------------------ results

    def _results(self) -> Results:
        c = self.config
        arms, floors = [], []
        for arm in self.arms:
            cells = [cell for cell in self.cells if cell.condition == arm]
            arms.append((Arm.of(arm), self._evidence(cells)))
            for view in ("grey_image", "wrong_instruction"):
                frames = [r for cell in cells for r in read_json(cell.folder / HELD_OUT)[view]]
                episodes = []
                if arm.id == c.floor_arm:
                    folders = [self.folder / "floors" / view / f"seed{cell.seed}" for cell in cells]
                    episodes = [r for folder in folders for r in read_jsonl(folder / EPISODES)]
                floors.append(FloorEvidence(view, arm.id, episodes, frames))
        blind = self._evidence([cell for cell in self.cells if cell.condition is NO_IMAGE])
        floors.append(FloorEvidence("no_image", None, blind.episodes, blind.frames))
        floors.append(FloorEvidence("blind_replay", None, read_jsonl(self.folder / "floors/blind_replay" / EPISODES)))
        references = {name: read_jsonl(self.folder / "references" / name / EPISODES) for name in ("expert", "random")}
        return build(
            self._study(),
            arms,
            floors,
            references,
            elsewhere=self._elsewhere(),
            pictures=list(self._pictures()),
            videos=list(self._videos()),
        )

    def _elsewhere(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Episodes on official states; seeds of one policy together."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for e in self._official() if self.config.also_official else ():
            label = " ".join(str(e.label[key]) for key in ("condition", "floor") if e.label.get(key))
            found.setdefault(("official", label), []).extend(read_jsonl(e.folder / EPISODES))
        return found

    def _evidence(self, cells: Sequence[Cell]) -> Evidence:
        return Evidence(
            episodes=[r for cell in cells for r in read_jsonl(cell.folder / EPISODES)],
            frames=[r for cell in cells for r in read_json(cell.folder / HELD_OUT)["true"]],
            train={cell.seed: _training_facts(cell.folder) for cell in cells},
            metrics={cell.seed: str((cell.folder / METRICS).relative_to(self.folder)) for cell in cells},
        )

    def _study(self) -> Study:
        c, begun = self.config, read_json(self.folder / "study.json")
        demonstrations = open_demonstrations(self.demonstrations)
        training, held_out = demonstrations.divide(c.held_out)
        rows, columns = c.backbone.grid
        return Study(
            preset=c.preset,
            command=begun["command"],
            commit=begun["commit"],
            data_hash=demonstrations.hash,
            started=begun["started"],
            finished=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            suite=c.suite,
            placement=c.placement,
            tasks={str(task.index): task.instruction for task in self.tasks},
            versions=versions(),
            hardware=hardware(),
            wall_seconds=read_json(self.folder / "times.json"),
            settings={
                "demonstrations": len(training.episodes),
                "held-out demonstrations": len(held_out.episodes),
                "patches": f"{rows} x {columns}, {masked_count(0.25, rows * columns)} masked",
                "training": f"{c.train.steps} steps of {c.train.batch_size}",
                "actions in a chunk": c.backbone.chunk,
                "render quality": c.quality,
                "seeds": list(c.seeds),
                "config": asdict(c),
            },
            action_error_unit=UNIT,
        )

    def _videos(self) -> Iterator[Video]:
        for cell in self.cells:
            for record in read_jsonl(cell.folder / EPISODES):
                if "video" in record and cell.seed == self.config.seeds[0]:
                    path = (cell.folder / record["video"]).relative_to(self.folder)
                    caption = f"{cell.condition.id}: {record['instruction']}"
                    yield Video(str(path), caption, record["success"])

    def _pictures(self) -> Iterator[Picture]:
        """The attention of all conditions on the same held-out frames, and each arm's reconstructions there."""
        samples = self._held_out_samples()
        chosen = spread_indices(samples, SHOWN + 2)[1:-1]
        batch = samples.batch(chosen)
        images = batch.images.permute(0, 2, 3, 1).numpy()
        seed, maps, masks = self.config.seeds[0], {}, {}
        grid = (0, 0)
        for cell in self.cells:
            if cell.seed != seed or cell.condition is NO_IMAGE:
                continue
            policy, _ = load_policy(cell.folder)
            grid = policy.backbone.grid
            looks = policy.look(batch.images, batch.instructions, batch.wrist, batch.proprio)
            maps[cell.condition.id] = looks.numpy()
            extra = cell.condition.reconstruction
            if extra is None or policy.reconstructor is None:
                continue
            mask = extra.mask(looks, (looks.shape[0], looks.shape[1]), generator(seed, "picture"))
            if isinstance(extra.mask, AttentionMask):
                masks[cell.condition.id] = mask.numpy()
            with torch.no_grad():
                patches = policy.features(batch, hidden=mask if extra.mask_at == "input" else None).patches
                painted = unpatchify(policy.reconstructor.picture(patches, mask), grid, policy.backbone.patch_size)
            strip = figures.reconstruction_strip(
                images, mask.numpy(), painted.permute(0, 2, 3, 1).numpy(), grid, batch.instructions
            )
            yield self._save(f"maps/reconstruction_{cell.condition.id}.png", strip, "reconstruction", cell.condition)
        path = self.folder / "maps/attention.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(figures.attention_grid(images, batch.instructions, maps, grid, masks))
        yield Picture("maps/attention.png", "attention", f"Attention on held-out frames, seed {seed}")

    def _save(self, name: str, data: bytes, kind, arm: Condition) -> Picture:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return Picture(name, kind, f"{arm.id}, {arm.name}: image, what the decoder was shown, prediction")


# ---------------------------------------------------------------- in worker processes

_inherited: Any = None


def _receive(shared, ticker) -> None:
    global _inherited
    config, training, held_out = shared
    b = config.backbone
    data = [Samples(part, b.image_size, b.chunk, wrist=b.wrist, proprio=b.proprio) for part in (training, held_out)]
    _inherited = (config, *data, ticker)


def _train_cell(cell: Cell) -> None:
    config, samples, held_out, ticker = _inherited
    policy = PolicyConfig.of(
        cell.condition,
        seed=cell.seed,
        backbone=config.backbone,
        bins=ActionBins.from_quantiles(*samples.quantiles(), spread=config.spread),
        quality=samples.demonstrations.quality,
        image_size=samples.demonstrations.image_size,
        data_hash=samples.demonstrations.hash,
        train_starts=samples.demonstrations.starts,
    )
    train(cell.condition, policy, config.train, samples, held_out, cell.folder, ticker)


def train_one(
    demonstrations: Path, out: Path, condition_id: str, seed: int, preset_name: str, steps: int | None, device: str
) -> Path:
    """Train one arm with one seed on a folder of demonstrations; see the command ``train``."""
    config, arm = preset(preset_name), condition(condition_id)
    schedule = replace(config.train, device=device, **({} if steps is None else {"steps": steps}))
    config = replace(config, train=schedule)
    pick_device(device)
    training, held_out = open_demonstrations(demonstrations).divide(config.held_out)
    with locked(out), progress("Training", total=schedule.steps, unit="steps") as bar:
        _receive((config, training, held_out), bar)
        _train_cell(Cell(arm.with_head(config.head), seed, out))
    return out


def ablate(
    preset_name: str,
    out: Path | None,
    seeds: Sequence[int] | None = None,
    conditions: Sequence[str] | None = None,
    tasks: Sequence[int] | None = None,
    demos: int | None = None,
    steps: int | None = None,
    episodes: int | None = None,
    device: str | None = None,
    workers: int = 0,
) -> Path:
    """Run a preset with some of its fields replaced; see the command ``ablate``. Returns the study's folder."""
    config = preset(preset_name)
    schedule = {key: value for key, value in (("steps", steps), ("device", device)) if value is not None}
    changes: dict[str, Any] = {"train": replace(config.train, **schedule)} if schedule else {}
    for key, value in (("seeds", seeds), ("conditions", conditions), ("tasks", tasks)):
        if value is not None:
            changes[key] = tuple(value)
    if demos is not None:
        changes["demos"] = demos
    if episodes is not None:
        changes |= {"episodes": episodes, "floor_episodes": min(episodes, config.floor_episodes)}
    folder = out or Path("runs") / preset_name
    Ablation(replace(config, **changes), folder, workers or default_workers()).run()
    return folder


def _training_facts(folder: Path) -> dict[str, Any]:
    lines = read_jsonl(folder / METRICS)
    first = next(line for line in lines if "start" in line)
    rates = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    last = {
        key: lines[-1].get(key) for key in ("action_loss", "reconstruction_loss", "held_out_action_loss", "batches")
    }
    return {
        "steps": lines[-1]["step"],
        "parameters": int(first["parameters"]),
        "start_weights": first["start"],
        "samples_per_second": float(np.median(rates)),
        **{key: value for key, value in last.items() if value is not None},
    }
