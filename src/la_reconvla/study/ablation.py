"""The ablation: collect, train every cell, roll out, measure, judge, report. Every part that is on disk is skipped."""

from __future__ import annotations

import datetime
import functools
import multiprocessing
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console

from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.checkpoint import (
    WEIGHTS,
    PolicyConfig,
    dry_run,
    file_hash,
    load_policy,
    load_start,
    pinned,
    start_bins,
    start_demonstrations,
)
from la_reconvla.conditions import NO_IMAGE, Condition
from la_reconvla.contracts import ACTION_DIM, Start
from la_reconvla.data.gaze import annotator
from la_reconvla.data.hdf5 import Demonstrations, open_demonstrations
from la_reconvla.data.samples import Samples, spread_indices
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.autoregressive import DECODINGS
from la_reconvla.method.mask import masked_count
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import MEAN
from la_reconvla.processes import explain_death, worker_pool
from la_reconvla.progress import progress
from la_reconvla.sim.collect import default_workers
from la_reconvla.sim.policies import Replay, Scripted, Trained, Uniform, swapped
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.sim.tasks import change_of
from la_reconvla.storage import atomic_write, claim, locked, read_json, read_jsonl, require_free_space, write_json
from la_reconvla.study import figures, leakage
from la_reconvla.study.cost import head_cost
from la_reconvla.study.declared import Declaration
from la_reconvla.study.evaluate import (
    EPISODES,
    Evaluation,
    evaluate,
    evaluation_starts,
    expert_can,
    has_replay,
    pending,
    tasks_of,
    wording,
    wrong_words,
)
from la_reconvla.study.evidence import ElsewhereEvidence, Evidence, FloorEvidence, build
from la_reconvla.study.facts import Energy, commit, hardware, versions
from la_reconvla.study.heldout import UNIT, VERSION, measure_run, watched
from la_reconvla.study.pairing import pairings
from la_reconvla.study.power import planned, power_table
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.study.report import write_report
from la_reconvla.study.results import Arm, Leak, Pairing, Picture, Power, Results, Study, Timeline, Video, write_results
from la_reconvla.study.tables import terminal_summary
from la_reconvla.study.timelines import draw, timelines
from la_reconvla.study.worlds import world
from la_reconvla.train import METRICS, SCHEDULE, WATCHED, pick_device, pick_precision, train

HELD_OUT = "held_out.json"
SHOWN = 4  # frames in the attention grid
CELL_BYTES = 100_000_000  # weights, optimizer state, curves and videos of one cell of the small presets, generously
T = TypeVar("T")
UNDECLARED = (
    "This study began without a written declaration: its hypotheses were not declared before the run. It is judged by "
    "those of the version that wrote these results."
)
GROWS = (
    *("seeds", "conditions", "episodes", "floor_episodes", "floor_arm"),
    *("also_official", "elsewhere", "elsewhere_episodes"),
)


@dataclass(frozen=True)
class Cell:
    """One condition with one seed and the folder that it lives in."""

    condition: Condition
    seed: int
    folder: Path


@dataclass(frozen=True)
class Place:
    """Official starts of one suite, beside the study's own.

    Attributes:
        suite: LIBERO suite.
        tasks: indices of its tasks.
        episodes: of each task and policy.
        folder: where their records go, below the study's folder.
        own: whether it is the suite that was trained on.
    """

    suite: str
    tasks: tuple[int, ...]
    episodes: int
    folder: str
    own: bool


class Ablation:
    """One study in one folder.

    Args:
        config: what to run.
        folder: where; a study of another configuration there is refused.
        workers: processes, one simulator or one training each.
        declaration: what it judges; None for what it declared when it began, the package's own if it begins now.
    """

    def __init__(self, config: StudyConfig, folder: Path, workers: int, declaration: Declaration | None = None):
        self.config, self.folder, self.workers = config, folder, max(1, workers)
        self.declaration = declaration
        arms = [config.arm(id) for id in config.conditions]
        self.world = world(config.suite)
        self.tasks = self.world.tasks(config)
        self.places = list(_places(config))
        self.cells = [
            Cell(arm, seed, folder / arm.id / f"seed{seed}") for seed in config.seeds for arm in (*arms, NO_IMAGE)
        ]
        self.arms = arms
        self.device = str(pick_device(config.train.device))
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
        self.world.require()
        require_free_space(self.folder, 2 * len(self.cells) * CELL_BYTES)
        c = self.config
        told = self.world.wording(c)
        told |= {words for place in self.places for words in wording(place.suite, place.tasks, "official")}
        _require_room(c, (text for _, text in told))
        _require_heads(c, self.arms)
        with locked(self.folder):
            self._claim(started)
            self.console.print(power_table(self._power, len(c.seeds)).rich())
            self._timed("collection", self._collect)
            self._timed("training", self._train)
            self._paired()  # before the rollouts, which take as long again
            self._timed("rollouts", self._evaluate)
            self._timed("held-out frames", self._measure)
            results = self._timed("statistics and pictures", self._results)
            spent = [self._spent("energy.json").get(name) for name in self._spent("times.json")]
            joules = [value for value in spent if value is not None]
            energy = sum(joules) if len(joules) == len(spent) else None
            study = replace(results.study, wall_seconds=self._spent("times.json"), energy_joules=energy)
            results = replace(results, study=study)
            write_results(self.folder / "results.json", results)
            write_report(self.folder)
        self.console.print(terminal_summary(results))
        return results

    # ------------------------------------------------------------ parts

    def _claim(self, started: str) -> None:
        """Make the folder this study's, or see that it is. Seeds, arms and episodes may join; nothing may change."""
        config = {**asdict(self.config), "train": self.config.train.identity}
        size = {key: config.pop(key) for key in GROWS}
        config.pop("gaze")  # who says where the target is belongs to the arms that are told, see `_told`
        path, now = self.folder / "study.json", commit()
        # The device may change between two runs of one study, the precision that it brings may not: arms are paired.
        precision = str(pick_precision(self.config.train.precision, torch.device(self.device)))
        identity = {"config": config, "versions": versions(), "precision": precision}
        declared = self.declaration or self.world.declared
        said = {"hypotheses": declared.text, "hypotheses_hash": declared.hash}
        begun = claim(path, identity, started=started, commits=[now], hardware=hardware(), **said)
        _require_declared(begun, self.declaration, path)
        commits = list(dict.fromkeys([*begun["commits"], now]))
        write_json(
            path, {**begun, "commits": commits, "size": size, "command": shlex.join(["la-reconvla", *sys.argv[1:]])}
        )

    @functools.cached_property
    def _power(self) -> tuple[Power, ...]:
        c = self.config
        return planned(len(c.seeds), len(c.tasks), c.episodes)

    def _timed(self, name: str, part: Callable[[], T]) -> T:
        begun, energy = time.perf_counter(), Energy()
        try:
            with energy:
                return part()
        finally:  # a part that is interrupted and resumed adds up
            for file, spent in (("times.json", time.perf_counter() - begun), ("energy.json", energy.joules)):
                known = self._spent(file)
                before = known.get(name, 0.0)
                both = None if spent is None or before is None else round(before + spent, 1)
                write_json(self.folder / file, {**known, name: both})

    def _spent(self, file: str) -> dict[str, Any]:
        """Seconds or joules of each part so far; None where a part of it was not measured."""
        path = self.folder / file
        return read_json(path) if path.exists() else {}

    def _collect(self) -> None:
        self.world.collect(self.config, self.demonstrations, self.workers)

    @functools.cached_property
    def _opened(self) -> Demonstrations:
        return open_demonstrations(self.demonstrations)

    @functools.cached_property
    def _divided(self) -> tuple[Demonstrations, Demonstrations]:
        return self._opened.divide(self.config.held_out)

    def _train(self) -> None:
        training, held_out = self._divided
        todo = []
        for cell in self.cells:
            if not (cell.folder / WEIGHTS).exists():
                todo.append(cell)
            elif PolicyConfig.load(cell.folder).data_hash != training.hash:
                raise UserError(f"{cell.folder} was trained on other demonstrations: delete it, or restore those")
        if not todo:
            return
        self._told(training)
        todo.sort(key=lambda cell: cell.condition.reconstruction is None)  # the long ones first
        total = len(todo) * self.config.train.steps
        with progress("Training", total=total, unit="steps", console=self.console) as bar:
            ticker = bar.ticker(multiprocessing.get_context("spawn"))
            shared = (self.config, training, held_out, ticker)
            with worker_pool(self.workers, _receive, shared) as pool, explain_death("training"):
                for future in as_completed([pool.submit(_train_cell, cell) for cell in todo]):
                    future.result()

    def _told(self, training: Demonstrations) -> None:
        """See that every demonstration has its boxes, and that finished arms were told the same, before one trains."""
        annotated = [cell for cell in self.cells if not cell.condition.annotation_free]
        if not annotated:
            return
        source = annotator(self.config.gaze)
        for cell in annotated:
            if (cell.folder / WEIGHTS).exists() and read_json(cell.folder / SCHEDULE)["annotation"] != source.identity:
                raise UserError(f"{cell.folder} was told other boxes: delete it, or give those with --gaze")
        for episode in training.episodes:
            source(episode)

    def _paired(self) -> tuple[Pairing, ...]:
        return pairings(((cell.condition, cell.seed, cell.folder) for cell in self.cells), self.folder)

    def _evaluate(self) -> None:
        for name, evaluations, starts in self._runs():
            with progress(name, pending(evaluations, starts), "episodes", console=self.console) as bar:
                evaluate(evaluations, starts, self._settings, self.workers, bar.advance)

    def _measure(self) -> None:
        def stale(cell: Cell) -> bool:
            path = cell.folder / HELD_OUT
            known = read_json(path) if path.exists() else {}
            return known.get("version") != VERSION or known["weights"] != file_hash(cell.folder / WEIGHTS)

        todo = [cell for cell in self.cells if stale(cell)]
        if not todo:
            return
        _, held_out = self._divided
        with progress("Held-out frames", total=len(todo), unit="policies", console=self.console) as bar:
            shared = (self.config, held_out, self._swaps, self.device)
            with worker_pool(self.workers, _receive, shared) as pool, explain_death("measuring"):
                running = {pool.submit(_measure_cell, cell): cell for cell in todo}
                for future in as_completed(running):
                    future.result()
                    bar.advance(note=running[future].condition.id)

    # ------------------------------------------------------------ what they need

    def _held_out_samples(self) -> Samples:
        return _samples_of(self._divided[1], self.config)

    @property
    def _settings(self) -> EnvSettings:
        return self.world.settings(self.config)

    def _runs(self) -> Iterator[tuple[str, list[Evaluation], list[Start]]]:
        """All that is rolled out: what to call it, the policies, and their starts."""
        yield "Rollouts", self._evaluations(), self._starts()
        for place in self.places:
            name = "Official states" if place.own else place.suite
            yield name, self._evaluations_at(place), self._starts(place)

    def _starts(self, place: Place | None = None) -> list[Start]:
        c = self.config
        trained_on, cache = frozenset(self._opened.starts), self.folder / "placements"
        if place is None:
            return self.world.starts(c, max(c.episodes, c.floor_episodes), trained_on, cache)
        return evaluation_starts(
            place.suite, place.tasks, "official", place.episodes, trained_on=trained_on, cache=cache
        )

    @functools.cached_property
    def _swaps(self) -> tuple[tuple[int, str, str], ...]:
        said = {(e.task or 0, e.instruction) for e in self._opened.episodes}
        return swapped(said | {(start.task, start.instruction) for start in self._starts()})

    def _evaluations(self) -> list[Evaluation]:
        c = self.config
        many, few = c.episodes * len(c.tasks), c.floor_episodes * len(c.tasks)
        result = []
        for cell in self.cells:
            label = {"condition": cell.condition.id, "seed": cell.seed}
            count = few if cell.condition is NO_IMAGE else many
            films = self.world.films and cell.condition is not NO_IMAGE
            policy = Trained(cell.folder, device=self.device)
            result.append(Evaluation(cell.folder, label, policy, count, films, c.backbone.grid))
            if cell.condition.id == c.floor_arm:
                for view in ("grey_image", "wrong_instruction"):
                    policy = Trained(cell.folder, view, self._swaps, device=self.device)
                    folder = self._floor(view, cell)
                    result.append(Evaluation(folder, {**label, "floor": view}, policy, few))
        alone = {"seed": None, "condition": None}
        floors, references = self.folder / "floors", self.folder / "references"
        return [
            *result,
            Evaluation(floors / "blind_replay", {**alone, "floor": "blind_replay"}, Replay(self.demonstrations), few),
            Evaluation(references / "expert", {**alone, "condition": "expert"}, self.world.expert, few),
            Evaluation(references / "random", {**alone, "condition": "random"}, Uniform(), few),
        ]

    def _floor(self, view: str, cell: Cell) -> Path:
        return self.folder / "floors" / view / cell.condition.id / f"seed{cell.seed}"

    @functools.cached_property
    def _asked(self) -> dict[Path, set[str]]:
        """Which starts each policy was to be evaluated on."""
        return {e.folder: {s.id for s in e.takes(starts)} for _, group, starts in self._runs() for e in group}

    def _episodes(self, folder: Path) -> list[dict[str, Any]]:
        """Records of the starts that were asked for: another command may have begun more, for some arms only."""
        return [record for record in read_jsonl(folder / EPISODES) if record["start_id"] in self._asked[folder]]

    def _evaluations_at(self, place: Place) -> list[Evaluation]:
        """The same policies and floors at `place`, as far as they can do its tasks, into a folder of their own."""
        swaps = self._swaps if place.own else wrong_words(place.suite, place.tasks, "official")
        result = []
        for e in self._evaluations():
            policy, only = e.policy, e.only
            if isinstance(policy, Trained) and policy.view == "wrong_instruction":
                policy = replace(policy, swaps=swaps)
            elif isinstance(policy, Scripted):
                only = expert_can
            elif isinstance(policy, Replay):
                only = functools.partial(has_replay, self._opened)
            folder = self.folder / place.folder / e.folder.relative_to(self.folder)
            result.append(Evaluation(folder, e.label, policy, only=only))
        return result

    # ------------------------------------------------------------ results

    def _results(self) -> Results:
        c = self.config
        arms, floors, inner = [], [], load_policy(self.cells[0].folder)[0].backbone
        for arm in self.arms:
            cells = [cell for cell in self.cells if cell.condition == arm]
            cost = head_cost(arm, inner.width, inner.grid, inner.patch_size)
            arms.append((Arm.of(arm, cost), self._evidence(cells)))
            for view in ("grey_image", "wrong_instruction"):
                frames = [r for cell in cells for r in read_json(cell.folder / HELD_OUT)[view]]
                episodes = []
                if arm.id == c.floor_arm:
                    episodes = [r for cell in cells for r in self._episodes(self._floor(view, cell))]
                floors.append(FloorEvidence(view, arm.id, episodes, frames))
        blind = self._evidence([cell for cell in self.cells if cell.condition is NO_IMAGE])
        floors.append(FloorEvidence("no_image", None, blind.episodes, blind.frames))
        floors.append(FloorEvidence("blind_replay", None, self._episodes(self.folder / "floors/blind_replay")))
        references = {name: self._episodes(self.folder / "references" / name) for name in ("expert", "random")}
        found = build(
            self._study(),
            arms,
            floors,
            references,
            elsewhere=self._elsewhere(),
            leakage=self._leakage(),
            pictures=list(self._pictures()),
            videos=list(self._videos()),
            timelines=list(self._timelines()),
        )
        return replace(found, power=self._power)

    def _elsewhere(self) -> list[ElsewhereEvidence]:
        """Episodes on official states, of this suite and of others; seeds of one policy together."""
        found: dict[tuple[str, str], ElsewhereEvidence] = {}
        for place in self.places:
            for e in self._evaluations_at(place):
                arm, floor = e.label["condition"], e.label.get("floor")
                label = " ".join(str(part) for part in (arm, floor) if part)
                if arm == NO_IMAGE.id:
                    arm, floor = None, "no_image"
                before = found.get((place.suite, label))
                found[place.suite, label] = ElsewhereEvidence(
                    placement="official",
                    label=label,
                    episodes=[*(before.episodes if before else ()), *self._episodes(e.folder)],
                    suite="" if place.own else place.suite,
                    change=change_of(place.suite),
                    condition=arm if arm in self.config.conditions else None,
                    floor=floor,
                )
        return list(found.values())

    def _leakage(self) -> list[Leak]:
        """What training shares with all that is evaluated."""
        c, (training, others) = self.config, self._divided
        trained, own = leakage.shown_in(training.episodes), leakage.shown_by(self._starts())
        found = [*leakage.audit(trained, own), leakage.held_out(training.episodes, others.episodes)]
        for place in self.places:
            found += leakage.audit(trained, leakage.shown_by(self._starts(place)), f"{place.suite}, official")
        known = (None, c.backbone.source) if isinstance(c.backbone, Pretrained) else (c.backbone.weights, None)
        acted = start_demonstrations(c.backbone)
        found += leakage.pretraining(*known, own, acted)
        for place in self.places:
            where = f"{place.suite}, official"
            found += leakage.pretraining(*known, leakage.shown_by(self._starts(place)), acted, where)
        return found

    def _evidence(self, cells: Sequence[Cell]) -> Evidence:
        return Evidence(
            episodes=[r for cell in cells for r in self._episodes(cell.folder)],
            frames=[r for cell in cells for r in read_json(cell.folder / HELD_OUT)["true"]],
            train={cell.seed: _training_facts(cell.folder) for cell in cells},
            metrics={cell.seed: str((cell.folder / METRICS).relative_to(self.folder)) for cell in cells},
            watched={cell.seed: watched(cell.folder, self._seen) for cell in cells},
        )

    @functools.cached_property
    def _seen(self) -> np.ndarray:
        """Share of each patch on the target in the held-out samples that trainings are watched on, float32 [m n]."""
        samples = self._held_out_samples()
        if not samples.demonstrations.episodes[0].instance_names:
            return np.zeros((0, 0), dtype=np.float32)
        chosen = spread_indices(len(samples), WATCHED)
        return samples.instance_patches(chosen, ("target",), self.config.backbone.grid)[:, 0]

    def _study(self) -> Study:
        c, begun = self.config, read_json(self.folder / "study.json")
        training, held_out = self._divided
        rows, columns = c.backbone.grid
        return Study(
            preset=c.preset,
            command=begun["command"],
            commit=", ".join(begun["commits"]),
            data_hash=self._opened.hash,
            started=begun["started"],
            finished=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            suite=c.suite,
            placement=c.placement,
            tasks={str(task.index): task.instruction for task in self.tasks},
            versions=begun["versions"],
            hardware=begun["hardware"],
            settings={
                "demonstrations": len(training.episodes),
                "held-out demonstrations": len(held_out.episodes),
                "patches": f"{rows} x {columns}, {masked_count(0.25, rows * columns)} masked",
                "training": f"{c.train.steps} steps of {c.train.batch_size}",
                "actions in a chunk": c.backbone.chunk,
                "render quality": c.quality,
                "seeds": list(c.seeds),
                **({} if all(a.annotation_free for a in self.arms) else {"boxes": annotator(c.gaze).label}),
                "config": asdict(c),
            },
            action_error_unit=UNIT,
            pairing=self._paired(),
            hypotheses=begun.get("hypotheses", ""),
            hypotheses_hash=begun.get("hypotheses_hash", ""),
            limits=() if "hypotheses" in begun else (UNDECLARED,),
        )

    def _videos(self) -> Iterator[Video]:
        for cell in self._shown():
            for record in self._episodes(cell.folder):
                if "video" in record:
                    path = (cell.folder / record["video"]).relative_to(self.folder)
                    caption = f"{cell.condition.id}: {record['instruction']}"
                    yield Video(str(path), caption, record["success"], cell.condition.id, record["start_id"])

    def _shown(self) -> list[Cell]:
        """The cells that pictures show: those of the first seed."""
        return [cell for cell in self.cells if cell.seed == self.config.seeds[0] and cell.condition is not NO_IMAGE]

    def _pictures(self) -> Iterator[Picture]:
        """What each arm's mask follows, on the same held-out frames, and its reconstructions there."""
        samples = self._held_out_samples()
        chosen = spread_indices(len(samples), SHOWN + 2)[1:-1]
        batch = samples.batch(chosen)
        images, told = batch.images.permute(0, 2, 3, 1).numpy(), batch.instructions
        seed, maps, masks = self.config.seeds[0], {}, {}
        grid = (0, 0)
        for cell in self._shown():
            arm, (policy, _) = cell.condition, load_policy(cell.folder)
            boxed = batch if arm.annotation_free else samples.told(annotator(self.config.gaze)).batch(chosen)
            found = draw(policy, arm, boxed, seed, self.config.train.steps)
            grid, maps[arm.id] = found.grid, found.saliency
            if found.wanted is None or found.painted is None:
                continue
            if found.mask is None:
                strip = figures.crop_strip(images, found.wanted, found.painted, told)
            else:
                strip = figures.reconstruction_strip(images, found.mask, found.painted, grid, told)
                if arm.saliency is not None:
                    masks[arm.id] = found.mask
            yield self._save(f"maps/reconstruction_{arm.id}.png", strip, "reconstruction", arm)
        path = self.folder / "maps/attention.png"
        _write(path, figures.attention_grid(images, told, maps, grid, masks))
        yield Picture("maps/attention.png", "attention", f"Attention on held-out frames, seed {seed}")

    def _timelines(self) -> Iterator[Timeline]:
        """One held-out episode under every arm."""
        boxes = None if all(arm.annotation_free for arm in self.arms) else annotator(self.config.gaze)
        arms = [(cell.condition, cell.folder) for cell in self._shown()]
        steps, seed = self.config.train.steps, self.config.seeds[0]
        return timelines(self.folder, arms, self._held_out_samples(), boxes, seed=seed, steps=steps)

    def _save(self, name: str, data: bytes, kind, arm: Condition) -> Picture:
        _write(self.folder / name, data)
        return Picture(name, kind, f"{arm.id}, {arm.name}: image, what the decoder was shown, prediction")


# ---------------------------------------------------------------- in worker processes

_inherited: Any = None


def _receive(*shared: Any) -> None:
    global _inherited
    _inherited = shared


@functools.cache
def _samples() -> tuple[Samples, Samples]:
    """Read once in each process, with the first cell, so that a damaged picture is that cell's error."""
    config, training, held_out, _ = _inherited
    return _samples_of(training, config), _samples_of(held_out, config)


def _samples_of(demonstrations: Demonstrations, config: StudyConfig) -> Samples:
    """Demonstrations as the study's backbone takes them."""
    b = config.backbone
    return Samples(demonstrations, b.image_size, b.chunk, wrist=b.wrist, proprio=b.proprio)


def _train_cell(cell: Cell) -> None:
    config, _, _, ticker = _inherited
    samples, held_out = _samples()
    if not cell.condition.annotation_free:
        samples = samples.told(annotator(config.gaze))
    policy = PolicyConfig.of(
        cell.condition,
        seed=cell.seed,
        backbone=config.backbone,
        bins=start_bins(config.backbone, config.spread)
        or ActionBins.from_quantiles(*samples.quantiles(), spread=config.spread),
        quality=samples.demonstrations.quality,
        image_size=samples.demonstrations.image_size,
        data_hash=samples.demonstrations.hash,
        train_starts=samples.demonstrations.starts,
        decoding=config.decoding,
    )
    train(cell.condition, policy, config.train, samples, held_out, cell.folder, ticker)


def _measure_cell(cell: Cell) -> None:
    config, held_out, swaps, device = _inherited
    torch.set_num_threads(config.train.threads)
    samples, own = _samples_of(held_out, config), cell.condition.saliency or MEAN
    indices = spread_indices(len(samples), config.frames)
    records = measure_run(cell.folder, samples, indices, swaps, device=device, source=own)
    found = {"version": VERSION, "weights": file_hash(cell.folder / WEIGHTS), **records}
    write_json(cell.folder / HELD_OUT, found)


def train_one(
    demonstrations: Path, out: Path, condition_id: str, seed: int, preset_name: str, changes: Mapping[str, Any]
) -> Path:
    """Train one arm with one seed on a folder of demonstrations; see the command ``train``."""
    config = _pinned(preset(preset_name).changed(**changes))
    arm = config.arm(condition_id)
    pick_device(config.train.device)
    opened = open_demonstrations(demonstrations)
    _require_room(config, (episode.instruction for episode in opened.episodes))
    _require_heads(config, [arm])
    training, held_out = opened.divide(config.held_out)
    with locked(out), progress("Training", total=config.train.steps, unit="steps") as bar:
        _samples.cache_clear()
        _receive(config, training, held_out, bar)
        _train_cell(Cell(arm, seed, out))
    return out


def ablate(
    preset_name: str, out: Path | None, workers: int, changes: Mapping[str, Any], hypotheses: Path | None = None
) -> Path:
    """Run a preset with some of its fields replaced; see the command ``ablate``. Returns the study's folder."""
    folder = out or Path("runs") / preset_name
    declaration = Declaration.read(hypotheses) if hypotheses else None
    config = _pinned(preset(preset_name).changed(**changes))
    # One device holds one model of billions of weights: each further worker would load it again.
    usual = 1 if isinstance(config.backbone, Pretrained) else default_workers()
    Ablation(config, folder, workers or usual, declaration).run()
    return folder


def _require_declared(begun: Mapping[str, Any], given: Declaration | None, path: Path) -> None:
    """Raise a `UserError` if the hypotheses are not those that the study began with."""
    if "hypotheses" not in begun:
        if given is not None:
            raise UserError(
                f"{path.parent} began without a declaration, and one made now would not be made before the run: leave "
                "--hypotheses out, or begin another study with --out"
            )
        return
    declared = Declaration.parse(begun["hypotheses"], f"{path}, hypotheses")
    if declared.hash != begun.get("hypotheses_hash"):
        raise UserError(
            f"{path}: the hypotheses were changed after the study began (their SHA-256 is no longer hypotheses_hash): "
            "restore them, or begin another study with --out"
        )
    if given is not None and given.hash != declared.hash:
        raise UserError(
            f"{path.parent} was begun with other hypotheses (SHA-256 {declared.hash[:12]}, now {given.hash[:12]}), and "
            "they may not change after that: leave --hypotheses out to go on with those, which stand in study.json, or "
            "begin another study with --out"
        )


def _places(config: StudyConfig) -> Iterator[Place]:
    """Where a study is evaluated besides its own starts."""
    own = config.also_official or (config.elsewhere_episodes if config.suite in config.elsewhere else 0)
    if own:
        yield Place(config.suite, config.tasks, own, "official", True)
    for suite in config.elsewhere:
        if suite != config.suite:
            tasks = tasks_of(suite, ((config.suite, index) for index in config.tasks))
            yield Place(suite, tasks, config.elsewhere_episodes, f"elsewhere/{suite}", False)


def _pinned(config: StudyConfig) -> StudyConfig:
    """The study with its backbone's weights named exactly; a missing licence or file shows now."""
    own = config.backbone
    return replace(config, backbone=own.pinned() if isinstance(own, Pretrained) else pinned(own))


def _require_room(config: StudyConfig, told: Iterable[str]) -> None:
    """Raise a `UserError` if an instruction does not fit the context, while nothing is written yet.

    Also if the backbone cannot decode as it should.
    """
    bins, decoding = ActionBins((-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM), DECODINGS[config.decoding]
    backbone = decoding.given(config.backbone)
    if isinstance(backbone, Pretrained):
        built: Any = replace(backbone, dtype="fp32", quantize=None).skeleton(backbone.tokenizer())
    else:
        built = backbone.build()
        if backbone.weights is not None:
            load_start(built, backbone)
    head = decoding.head(built, bins, config.backbone.chunk)
    dry_run(Policy(built, bins, head=head).to(next(built.parameters()).device), told)


def _require_heads(config: StudyConfig, arms: Iterable[Condition]) -> None:
    """Raise a `UserError` if boxes or a VAE that an arm needs are not there, while nothing is written yet."""
    for arm in arms:
        if not arm.annotation_free:
            annotator(config.gaze)
        if arm.reconstruction is not None:
            size = config.backbone.image_size
            head = arm.reconstruction.head.build(4, config.backbone.grid, size // config.backbone.grid[0])
            head.target(torch.zeros(1, 3, size, size, dtype=torch.uint8))


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


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
