"""The ablation: collect, train every cell, roll out, measure, judge, report. Every part that is on disk is skipped."""

from __future__ import annotations

import datetime
import functools
import multiprocessing
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
from la_reconvla.checkpoint import WEIGHTS, PolicyConfig, dry_run, file_hash, load_policy, load_start, pinned
from la_reconvla.conditions import NO_IMAGE, Condition, condition
from la_reconvla.contracts import ACTION_DIM
from la_reconvla.data.gaze import annotator
from la_reconvla.data.hdf5 import Demonstrations, open_demonstrations
from la_reconvla.data.samples import Samples, spread_indices
from la_reconvla.errors import UserError
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.autoregressive import DECODINGS
from la_reconvla.method.mask import masked_count
from la_reconvla.method.pixels import unpatchify
from la_reconvla.method.policy import Policy
from la_reconvla.method.saliency import MEAN
from la_reconvla.processes import explain_death, worker_pool
from la_reconvla.progress import progress
from la_reconvla.randomness import generator
from la_reconvla.sim.collect import default_workers
from la_reconvla.sim.policies import Replay, Trained, Uniform, swapped
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.storage import atomic_write, claim, locked, read_json, read_jsonl, require_free_space, write_json
from la_reconvla.study import figures
from la_reconvla.study.cost import head_cost
from la_reconvla.study.declared import Declaration
from la_reconvla.study.evaluate import EPISODES, Evaluation, evaluate, pending
from la_reconvla.study.evidence import Evidence, FloorEvidence, build
from la_reconvla.study.facts import commit, hardware, versions
from la_reconvla.study.heldout import UNIT, measure_run
from la_reconvla.study.pairing import pairings
from la_reconvla.study.power import planned, power_table
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.study.report import write_report
from la_reconvla.study.results import Arm, Pairing, Picture, Power, Results, Study, Video, write_results
from la_reconvla.study.tables import terminal_summary
from la_reconvla.study.worlds import world
from la_reconvla.train import METRICS, SCHEDULE, pick_device, pick_precision, train

HELD_OUT = "held_out.json"
SHOWN = 4  # frames in the attention grid
CELL_BYTES = 100_000_000  # weights, optimizer state, curves and videos of one cell of the small presets, generously
T = TypeVar("T")
UNDECLARED = (
    "This study began without a written declaration: its hypotheses were not declared before the run. It is judged by "
    "those of the version that wrote these results."
)
GROWS = ("seeds", "conditions", "episodes", "floor_episodes", "also_official", "floor_arm")


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
        declaration: what it judges; None for what it declared when it began, the package's own if it begins now.
    """

    def __init__(self, config: StudyConfig, folder: Path, workers: int, declaration: Declaration | None = None):
        self.config, self.folder, self.workers = config, folder, max(1, workers)
        self.declaration = declaration
        arms = [condition(id).with_head(config.head, config.denoiser) for id in config.conditions]
        self.world = world(config.suite)
        self.tasks = self.world.tasks(config)
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
        _require_room(c, (text for _, text in self.world.wording(c)))
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
            times = read_json(self.folder / "times.json")
            results = replace(results, study=replace(results.study, wall_seconds=times))
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
        write_json(path, {**begun, "commits": commits, "size": size, "command": " ".join(sys.argv)})

    @functools.cached_property
    def _power(self) -> tuple[Power, ...]:
        c = self.config
        return planned(len(c.seeds), len(c.tasks), c.episodes)

    def _timed(self, name: str, part: Callable[[], T]) -> T:
        begun = time.perf_counter()
        try:
            return part()
        finally:  # a part that is interrupted and resumed adds up
            path = self.folder / "times.json"
            times = read_json(path) if path.exists() else {}
            write_json(path, {**times, name: round(times.get(name, 0.0) + time.perf_counter() - begun, 1)})

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
        evaluations, starts, settings = self._evaluations(), self._starts(), self._settings
        count = pending(evaluations, starts)
        with progress("Rollouts", total=count, unit="episodes", console=self.console) as bar:
            evaluate(evaluations, starts, settings, self.workers, bar.advance)
        if self.config.also_official:
            official = self._official()
            starts = self._starts("official")
            with progress("Official states", pending(official, starts), "episodes", console=self.console) as bar:
                evaluate(official, starts, settings, self.workers, bar.advance)

    def _measure(self) -> None:
        def stale(cell: Cell) -> bool:
            path = cell.folder / HELD_OUT
            return not path.exists() or read_json(path).get("weights") != file_hash(cell.folder / WEIGHTS)

        todo = [cell for cell in self.cells if stale(cell)]
        with progress("Held-out frames", total=len(todo), unit="policies", console=self.console) as bar:
            samples = self._held_out_samples()
            indices = spread_indices(len(samples), self.config.frames)
            for cell in todo:
                own = cell.condition.saliency or MEAN
                records = measure_run(cell.folder, samples, indices, self._swaps, device=self.device, source=own)
                write_json(cell.folder / HELD_OUT, {"weights": file_hash(cell.folder / WEIGHTS), **records})
                bar.advance(note=cell.condition.id)

    # ------------------------------------------------------------ what they need

    def _held_out_samples(self) -> Samples:
        return _samples_of(self._divided[1], self.config)

    @property
    def _settings(self) -> EnvSettings:
        return self.world.settings(self.config)

    def _starts(self, placement: str | None = None):
        c = self.config
        official = placement == "official"
        return self.world.starts(
            c,
            "official" if official else c.placement,
            c.also_official if official else max(c.episodes, c.floor_episodes),
            frozenset(self._opened.starts),
            self.folder / "placements",
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
        runs = [(self._evaluations(), self._starts())]
        if self.config.also_official:
            runs.append((self._official(), self._starts("official")))
        return {e.folder: {start.id for start in starts[: e.episodes]} for group, starts in runs for e in group}

    def _episodes(self, folder: Path) -> list[dict[str, Any]]:
        """Records of the starts that were asked for: another command may have begun more, for some arms only."""
        return [record for record in read_jsonl(folder / EPISODES) if record["start_id"] in self._asked[folder]]

    def _official(self) -> list[Evaluation]:
        """The same policies and floors on official states, into a folder of their own."""
        return [
            Evaluation(self.folder / "official" / e.folder.relative_to(self.folder), e.label, e.policy)
            for e in self._evaluations()
        ]

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
            pictures=list(self._pictures()),
            videos=list(self._videos()),
        )
        return replace(found, power=self._power)

    def _elsewhere(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Episodes on official states; seeds of one policy together."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for e in self._official() if self.config.also_official else ():
            label = " ".join(str(e.label[key]) for key in ("condition", "floor") if e.label.get(key))
            found.setdefault(("official", label), []).extend(self._episodes(e.folder))
        return found

    def _evidence(self, cells: Sequence[Cell]) -> Evidence:
        return Evidence(
            episodes=[r for cell in cells for r in self._episodes(cell.folder)],
            frames=[r for cell in cells for r in read_json(cell.folder / HELD_OUT)["true"]],
            train={cell.seed: _training_facts(cell.folder) for cell in cells},
            metrics={cell.seed: str((cell.folder / METRICS).relative_to(self.folder)) for cell in cells},
        )

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
        for cell in self.cells:
            for record in self._episodes(cell.folder):
                if "video" in record and cell.seed == self.config.seeds[0]:
                    path = (cell.folder / record["video"]).relative_to(self.folder)
                    caption = f"{cell.condition.id}: {record['instruction']}"
                    yield Video(str(path), caption, record["success"])

    def _pictures(self) -> Iterator[Picture]:
        """What each arm's mask follows, on the same held-out frames, and its reconstructions there."""
        samples = self._held_out_samples()
        chosen = spread_indices(len(samples), SHOWN + 2)[1:-1]
        batch = samples.batch(chosen)
        images = batch.images.permute(0, 2, 3, 1).numpy()
        seed, maps, masks = self.config.seeds[0], {}, {}
        grid = (0, 0)
        for cell in self.cells:
            if cell.seed != seed or cell.condition is NO_IMAGE:
                continue
            policy, _ = load_policy(cell.folder)
            grid = policy.backbone.grid
            own = cell.condition.saliency or MEAN
            with torch.no_grad():
                seen = policy.features(batch, attention=own.rows)
            looks = own(seen, policy.saliency_state)
            maps[cell.condition.id] = looks.numpy()
            extra = cell.condition.reconstruction
            if extra is None or policy.reconstructor is None:
                continue
            told = batch if cell.condition.annotation_free else samples.told(annotator(self.config.gaze)).batch(chosen)
            steps, draws = self.config.train.steps, generator(seed, "picture")
            _, mask = extra.cover(seen, policy.saliency_state, told.gaze, draws, steps)
            if extra.follows is not None and mask is not None:
                masks[cell.condition.id] = mask.numpy()
            with torch.no_grad():
                patches = policy.features(batch, hidden=mask if extra.mask_at == "input" else None).patches
            wanted = extra.picture(told, draws)
            painted = policy.reconstructor.picture(patches, mask, policy.reconstructor.target(wanted))
            drawn = unpatchify(painted, grid, policy.backbone.patch_size).permute(0, 2, 3, 1).numpy()
            strip = (
                figures.crop_strip(images, wanted.permute(0, 2, 3, 1).numpy(), drawn, batch.instructions)
                if mask is None
                else figures.reconstruction_strip(images, mask.numpy(), drawn, grid, batch.instructions)
            )
            yield self._save(f"maps/reconstruction_{cell.condition.id}.png", strip, "reconstruction", cell.condition)
        path = self.folder / "maps/attention.png"
        _write(path, figures.attention_grid(images, batch.instructions, maps, grid, masks))
        yield Picture("maps/attention.png", "attention", f"Attention on held-out frames, seed {seed}")

    def _save(self, name: str, data: bytes, kind, arm: Condition) -> Picture:
        _write(self.folder / name, data)
        return Picture(name, kind, f"{arm.id}, {arm.name}: image, what the decoder was shown, prediction")


# ---------------------------------------------------------------- in worker processes

_inherited: Any = None


def _receive(config: StudyConfig, training: Demonstrations, held_out: Demonstrations, ticker: Any) -> None:
    global _inherited
    _inherited = (config, training, held_out, ticker)


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
        bins=ActionBins.from_quantiles(*samples.quantiles(), spread=config.spread),
        quality=samples.demonstrations.quality,
        image_size=samples.demonstrations.image_size,
        data_hash=samples.demonstrations.hash,
        train_starts=samples.demonstrations.starts,
        decoding=config.decoding,
    )
    train(cell.condition, policy, config.train, samples, held_out, cell.folder, ticker)


def train_one(
    demonstrations: Path, out: Path, condition_id: str, seed: int, preset_name: str, changes: Mapping[str, Any]
) -> Path:
    """Train one arm with one seed on a folder of demonstrations; see the command ``train``."""
    config = _pinned(preset(preset_name).changed(**changes))
    arm = condition(condition_id).with_head(config.head, config.denoiser)
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
