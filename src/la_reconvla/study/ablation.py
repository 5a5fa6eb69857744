"""The ablation: collect, train every cell, roll out, measure, judge. Every part that is on disk is skipped."""

from __future__ import annotations

import functools
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from la_reconvla import kinds, layout
from la_reconvla.analysis.build import build
from la_reconvla.analysis.declaration import Declaration
from la_reconvla.analysis.measures import Power
from la_reconvla.analysis.power import BETWEEN_SEEDS, planned, power_table
from la_reconvla.analysis.results import Arm, Pairing, Results, Video
from la_reconvla.analysis.sequences import SequenceResults
from la_reconvla.analysis.trainings import spread_of_trainings
from la_reconvla.conditions import NO_IMAGE
from la_reconvla.data.boxes import Boxes, annotator
from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.execution.current import executor
from la_reconvla.progress import followed_by, progress
from la_reconvla.robot import LIBERO_ACTIONS
from la_reconvla.storage import claim, locked, read_json, require_free_space, write_json
from la_reconvla.study import gathering
from la_reconvla.study.begun import read_begun, record_look
from la_reconvla.study.cells import Cell, cells, official_starts, offline, samples_of
from la_reconvla.study.domains import ON_RECORDED, Domain, Recorded, domain
from la_reconvla.study.evaluate import Evaluation, evaluate, pending
from la_reconvla.study.evaluations import Evaluations
from la_reconvla.study.films import Cast, study_films
from la_reconvla.study.forecast import PARTS, afterwards, forecast
from la_reconvla.study.head_cost import head_cost
from la_reconvla.study.identity import GROWS, READ, grown, identity_of, with_defaults
from la_reconvla.study.pairing import pairings
from la_reconvla.study.parts import boxes_beside
from la_reconvla.study.pictures import pictures, timelines
from la_reconvla.study.presets import StudyConfig, preset
from la_reconvla.study.provenance import Energy, commit, hardware, now
from la_reconvla.study.records import require_same_study, require_weights, restore
from la_reconvla.study.requirements import (
    pinned_config,
    require_beginning,
    require_declared,
    require_devices,
    require_heads,
    require_room,
)
from la_reconvla.study.runs import usual_workers
from la_reconvla.study.shards import Piece, Share, claimed, pieces_of, require_idle
from la_reconvla.study.starts import wording
from la_reconvla.study.train_cells import measure_cells, stale, train_cells
from la_reconvla.text_table import say
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.devices import pick_device
from la_reconvla.training.run_state import recorded_only, trained
from la_reconvla.training.trackers import require_service

CELL_BYTES = 100_000_000  # weights, optimizer state, curves and videos of one cell of the small presets, generously
T = TypeVar("T")


class Ablation:
    """One study in one folder.

    Args:
        config: what to run.
        folder: where; a study of another configuration there is refused.
        workers: processes, one simulator or one training each.
        declaration: what it judges; None for what it declared when it began, the package's own if it begins now.
        place: where it takes place; None for where its suite does.
        devices: where cells train side by side, one process each; () for `workers` on the device of the schedule.
    """

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        workers: int,
        declaration: Declaration | None = None,
        place: Domain | None = None,
        devices: Sequence[str] = (),
    ):
        require_devices(devices)
        self.config, self.folder, self.workers = config, folder, max(1, workers)
        self.declaration, self.devices = declaration, devices
        self.arms = [config.arm(id) for id in config.conditions]
        self.domain = place or domain(config.suite)
        self.tasks = self.domain.tasks(config)
        self.places = list(official_starts(config))
        self.cells = cells(config, folder)
        self.device = str(pick_device(config.train.device))
        self.console = Console(stderr=True)
        self._took: dict[str, float] = {}

    @property
    def demonstrations(self) -> Path:
        """Folder of the demonstrations."""
        return self.domain.recorded or self.folder / layout.DEMONSTRATIONS

    def run(self) -> Results:
        """Everything, from the simulator to ``results.json`` and its pictures.

        Raises:
            UserError: with the way out, before long work where that is possible.
        """
        self._require()
        with locked(self.folder):
            require_idle(self.folder)
            self._claim(now())
            self.console.print(
                self.domain.limit or power_table(self._power(search=False), len(self.config.seeds), False)
            )
            collection, training, rollouts, frames, statistics = PARTS
            self._timed(collection, self._collect)
            self._timed(training, self._train)
            self._paired()  # before the rollouts, which take as long again
            sequences = self._timed(rollouts, self._evaluate)
            self._timed(frames, self._measure)
            return self._judged(self._timed(statistics, self._results), sequences)

    def run_share(self, share: Share) -> list[str]:
        """What one of several processes does of it, beside collecting, which the first of them does; nothing is judged.

        Returns:
            What is done and what is left, in lines.

        Raises:
            UserError: as `run`.
        """
        self._require()
        with locked(self.folder, wait=True):
            self._claim(now())
            self._collect()
            pieces = pieces_of(self._evaluations)  # with the starts, which are kept on the disk
        order = share.order(pieces)
        with closing(claimed(self.folder, order, self._unfinished)) as mine:
            for piece in mine:
                self._do(piece)
        left = [str(piece.folder.relative_to(self.folder)) for piece in order if self._unfinished(piece)]
        lines = [f"{len(order) - len(left)} of {len(order)} parts of this study are done"]
        return [*lines, f"others are working on {', '.join(left)}"] if left else lines

    def _unfinished(self, piece: Piece) -> bool:
        if (cell := piece.cell) is not None and not trained(cell.folder):
            return True
        return piece.pending > 0 or (cell is not None and stale(cell, self._boxes))

    def _do(self, piece: Piece) -> None:
        of_piece = [] if piece.cell is None else [piece.cell]
        train_cells(of_piece, self.config, *self._divided, self.workers, self.console, self.devices)
        for name, evaluations, starts in piece.rollouts:
            self._roll_out(name, evaluations, starts)
        self._measure(of_piece)

    def _require(self) -> None:
        """Raise a `UserError` if something is missing, before anything is written."""
        self.domain.require(self.config)
        require_service(self.config.train.track)
        require_free_space(self.folder, 2 * len(self.cells) * CELL_BYTES)
        c = self.config
        told = self.domain.wording(c)
        told |= {words for place in self.places for words in wording(place.suite, place.tasks, "official")}
        space = LIBERO_ACTIONS if self.domain.recorded is None else self._opened.space
        require_room(c, (text for _, text in told), space)
        require_heads(c, self.arms)
        require_weights(c, self.folder, self.cells)

    def _judged(self, results: Results, sequences: SequenceResults | None) -> Results:
        """The results with what the study took, written down, and this look at them."""
        c = self.config
        spent = [self._spent(layout.ENERGY).get(name) for name in self._spent(layout.TIMES)]
        joules = [value for value in spent if value is not None]
        energy = sum(joules) if len(joules) == len(spent) else None
        study = replace(results.study, wall_seconds=self._spent(layout.TIMES), energy_joules=energy)
        # What is judged on recorded demonstrations rests on held-out frames, however many sequences CALVIN counts.
        starts = c.episodes if self.domain.recorded is None else 1
        there = c.elsewhere, c.elsewhere_episodes, c.also_official
        looks = record_look(self.folder / layout.STUDY, results, len(c.seeds), starts, *there)
        results = replace(results, study=study, sequences=sequences, looks=looks)
        write_json(self.folder / layout.RESULTS, results)
        return results

    # ------------------------------------------------------------ parts

    def _claim(self, started: str) -> None:
        """Make the folder this study's, or see that it is. Seeds, arms and episodes may join; nothing may change."""
        values = kinds.to_json(self.config)
        size, read = ({key: values[key] for key in keys} for keys in (GROWS, READ))
        path, code = self.folder / layout.STUDY, commit()
        declared = self.declaration or self.domain.declared
        require_beginning(path, declared)
        said = {"hypotheses": declared.text, "hypotheses_hash": declared.hash}
        identity, defaults = identity_of(self.config, self.device), functools.partial(with_defaults, config=self.config)
        begun = claim(path, identity, defaults, started=started, commits=[code], hardware=hardware(), **said)
        require_declared(begun, self.declaration, path)
        commits = list(dict.fromkeys([*begun["commits"], code]))
        command = shlex.join(["la-reconvla", *sys.argv[1:]])
        write_json(path, {**begun, "commits": commits, "size": size, "read": read, "command": command})

    def _power(self, between_seeds: float | None = None, search: bool = True) -> tuple[Power, ...]:
        """What this study can tell apart by the rule that it declared; None: trainings vary as is usual."""
        c, declared = self.config, self._declared
        arms = sum(arm.id in declared.arms for arm in self.arms) if declared.pooled else 2
        spread = BETWEEN_SEEDS if between_seeds is None else between_seeds
        shared = 2 if c.placement == "wide" else 1
        of = {"arms": arms, "between_seeds": spread, "shared": shared, "search": search}
        return planned(len(c.seeds), len(c.tasks), c.episodes, **of, tests=declared.tests(a.id for a in self.arms))

    @property
    def _declared(self) -> Declaration:
        """What it declared when it began."""
        return Declaration.parse(read_begun(self.folder / layout.STUDY).hypotheses, layout.STUDY)

    @functools.cached_property
    def _forecast(self) -> dict[str, float] | None:
        known = self.domain.films  # the toy takes no time
        return forecast(self.config, self.folder, self.cells, self.places, self.workers) if known else None

    def _timed(self, name: str, part: Callable[[], T]) -> T:
        begun, energy = time.perf_counter(), Energy()
        after = None if self._forecast is None else afterwards(name, self._forecast, self._took)
        self.console.print(f"{PARTS.index(name) + 1} of {len(PARTS)}  {name}")
        try:
            with energy, followed_by(after):
                return part()
        finally:  # a part that is interrupted and resumed adds up
            self._took[name] = time.perf_counter() - begun
            for file, spent in ((layout.TIMES, self._took[name]), (layout.ENERGY, energy.joules)):
                known = self._spent(file)
                before = known.get(name, 0.0)
                both = None if spent is None or before is None else round(before + spent, 1)
                write_json(self.folder / file, {**known, name: both})

    def _spent(self, file: str) -> dict[str, Any]:
        """Seconds or joules of each part so far; None where a part of it was not measured."""
        path = self.folder / file
        return read_json(path) if path.exists() else {}

    def _collect(self) -> None:
        self.domain.collect(self.config, self.demonstrations, self.workers)

    @functools.cached_property
    def _opened(self) -> Demonstrations:
        return open_demonstrations(self.demonstrations)

    @functools.cached_property
    def _divided(self) -> tuple[Demonstrations, Demonstrations]:
        return self._opened.divide(self.config.held_out)

    @functools.cached_property
    def _evaluations(self) -> Evaluations:
        return Evaluations(self.config, self.folder, self.domain, self.cells, self.places, self._opened, self.device)

    def _train(self) -> None:
        train_cells(self.cells, self.config, *self._divided, self.workers, self.console, self.devices)

    def _paired(self) -> tuple[Pairing, ...]:
        return pairings(((cell.condition, cell.seed, cell.folder) for cell in self.cells), self.folder)

    def _evaluate(self) -> SequenceResults | None:
        for name, evaluations, starts in self._evaluations.runs() if self.domain.recorded is None else ():
            self._roll_out(name, evaluations, starts)
        return self.domain.sequences(self.config, self.folder, self.cells, self.workers, self.device)

    def _roll_out(self, name: str, evaluations: Sequence[Evaluation], starts: Sequence[Start]) -> None:
        with progress(name, pending(evaluations, starts), "episodes", console=self.console) as bar:
            evaluate(evaluations, starts, self._evaluations.settings, self.workers, bar.advance)

    @functools.cached_property
    def _boxes(self) -> Boxes | None:
        return boxes_beside(self._divided[1], self.config.gaze)

    def _measure(self, of: Sequence[Cell] | None = None) -> None:
        swaps = self._evaluations.swaps
        measure_cells(
            self.cells if of is None else of,
            self.config,
            self._divided[1],
            swaps,
            self.device,
            self.workers,
            self.console,
        )

    def _results(self) -> Results:
        on_target = gathering.watched_coverage(self._divided[1], self.config)
        inner = PolicyConfig.load(self.cells[0].folder).build().backbone
        arms = []
        for arm in self.arms:
            of_arm = [cell for cell in self.cells if cell.condition == arm]
            cost = head_cost(arm, inner.width, inner.grid, inner.patch_size)
            arms.append((Arm.of(arm, cost), gathering.evidence(of_arm, self._evaluations, on_target)))
        blind_cells = [cell for cell in self.cells if cell.condition is NO_IMAGE]
        blind = gathering.evidence(blind_cells, self._evaluations, on_target)
        references = self.folder / layout.REFERENCES
        inputs = PolicyConfig.load(self.cells[0].folder).inputs
        samples, shown = samples_of(self._divided[1], self.config, inputs), self._shown()
        videos, unfilmed = self._films(shown)
        found = build(
            gathering.study_description(self._evaluations, self._divided, self.tasks, self.arms, self._paired()),
            arms,
            gathering.floors(self.arms, self._evaluations, blind),
            {name: self._evaluations.episodes(references / name) for name in ("expert", "random")},
            conditions=self.arms,
            elsewhere=gathering.other_starts(self._evaluations),
            leakage=gathering.shared(self._evaluations, self._divided),
            pictures=list(pictures(self.folder, self.config, shown, samples)),
            videos=videos,
            timelines=list(
                timelines(
                    self.folder,
                    [(cell.condition, cell.folder) for cell in shown],
                    samples,
                    None if all(arm.annotation_free for arm in self.arms) else annotator(self.config.gaze),
                    seed=self.config.seeds[0],
                )
            ),
        )
        found = replace(found, unfilmed=unfilmed)
        if self.domain.recorded is None:
            declared = self._declared
            pooled = {arm.id: seen for arm, seen in arms if arm.id in declared.arms or not declared.pooled}
            found = replace(found, power=self._power(spread_of_trainings(pooled)))
        return found

    def _films(self, shown: Sequence[Cell]) -> tuple[list[Video], int]:
        if not self.domain.films:
            return [], 0
        grid, episodes = self.config.backbone.grid, self._evaluations.episodes
        casts = [Cast(cell.condition.id, cell.folder, episodes(cell.folder), grid) for cell in shown]
        return study_films(self.folder, casts, self._evaluations.starts(), self._evaluations.settings, self.workers)

    def _shown(self) -> list[Cell]:
        """The cells that pictures show: those of the first seed whose weights are here."""
        first = [cell for cell in self.cells if cell.seed == self.config.seeds[0] and cell.condition is not NO_IMAGE]
        if left_out := [cell.condition.id for cell in first if recorded_only(cell.folder)]:
            say(f"no pictures of {', '.join(left_out)}: their weights are not here, only records")
        return [cell for cell in first if not recorded_only(cell.folder)]


def ablate(
    preset_name: str,
    out: Path | None,
    workers: int,
    changes: Mapping[str, Any],
    hypotheses: Path | None = None,
    recorded: Path | None = None,
    devices: Sequence[str] = (),
    records: Path | None = None,
    share: Share | None = None,
) -> Path:
    """Run a preset with some of its fields replaced; see the command ``study run``. Returns the study's folder.

    On `recorded` demonstrations nothing is rolled out, unless the suite is one of `ON_RECORDED`. Cells train on all
    `devices`; the rest is done on the first. What `records` hold is restored before, and not done again. With a `share`
    only that is done, and nothing is judged.

    Raises:
        UserError: with the way out; if `changes` name a device beside `devices`, too.
    """
    if devices:
        if executor().workers is not None:
            raise UserError("--devices are of this machine: on a cluster --device cuda gives each training a GPU")
        if changes.get("device") is not None:
            raise UserError("--device is where all is done, --devices where policies train side by side: give one")
        changes = {**changes, "device": devices[0]}
    place = None if recorded is None else ON_RECORDED.get(changes.get("suite") or "", Recorded)(recorded.resolve())
    folder = out or layout.RUNS / (preset_name if place is None else f"{preset_name}-{place.name}")
    declaration = Declaration.read(hypotheses) if hypotheses else None
    config = pinned_config(preset(preset_name).changed(**changes))
    if place is not None:
        place.require(config)  # before a dataset is read, which may take long
        config = offline(config, changes, open_demonstrations(place.recorded), place.takes)
    if records is not None:
        with locked(folder, wait=share is not None):
            require_same_study(config, records)
            for line in restore([records], folder):
                say(line)
    config = grown(config, folder)
    if changes.get("elsewhere_episodes") is not None and not config.elsewhere:
        raise UserError("elsewhere_episodes counts the states of other suites: name them with --elsewhere")
    workers = workers or executor().workers or usual_workers(config.backbone)
    study = Ablation(config, folder, workers, declaration, place, devices)
    if share is None:
        study.run()
    else:
        for line in study.run_share(share):
            say(line)
    return folder
