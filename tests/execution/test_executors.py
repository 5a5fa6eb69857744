"""One contract for both executors: results as they finish, errors with a name, workers that load once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from la_reconvla.errors import UserError
from la_reconvla.execution.current import executor, using
from la_reconvla.execution.jobs import Executor, Files, Job, Needs, nothing
from la_reconvla.execution.local import Local
from la_reconvla.leases import PREFIX
from la_reconvla.storage import locked, write_json

LITTLE = Needs(memory=100_000_000)
_loaded: Any = None


def load(path: Path | None, value: int = 0) -> None:
    global _loaded
    _loaded = value, os.getpid()
    if path is not None:
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")


def add(number: int) -> tuple[int, int]:
    return number + _loaded[0], os.getpid()


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail(wrong: str) -> None:
    raise UserError(wrong) if wrong == "user" else ZeroDivisionError(wrong)


def die(flag: Path | None = None) -> str:
    """Once, if there is a flag; else always."""
    if flag is not None and flag.exists():
        return "survived"
    if flag is not None:
        flag.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def threads() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID")}


def copy(source: Path, target: Path) -> tuple[str, str]:
    target.parent.mkdir(parents=True, exist_ok=True)
    before = target.read_text() if target.exists() else ""
    target.write_text(before + source.read_text())
    (target.parent / "state").mkdir(exist_ok=True)
    (target.parent / "state/large").write_text("not to be sent")
    return str(source), str(target)


def write(path: Path) -> None:
    write_json(path, "written")


def gone(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return False
    return True


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Any]:
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    from helpers_ray import two_nodes

    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Executor:
    if request.param == "local":
        return Local()
    request.getfixturevalue("on_ray")
    from la_reconvla.execution.on_ray import Ray

    return Ray()


def values(engine: Executor, jobs: Any, workers: int = 2, setup: Job | None = None, **more: Any) -> list[Any]:
    setups = [setup or Job("start", nothing)] * workers
    return [value for _, value in engine.map(iter(jobs), setups, LITTLE, "test", **more)]


def test_every_job_gives_its_value_and_a_setup_runs_once_a_worker(engine: Executor, tmp_path: Path) -> None:
    setup = Job("load", load, (tmp_path / "log", 10))
    found = values(engine, [Job(str(n), add, (n,)) for n in range(12)], setup=setup)
    assert sorted(value for value, _ in found) == list(range(10, 22))
    begun = (tmp_path / "log").read_text().split()
    assert len(begun) == len(set(begun)) <= 2
    assert {str(pid) for _, pid in found} <= set(begun)
    assert os.getpid() not in {pid for _, pid in found}


def test_results_come_as_they_finish(engine: Executor) -> None:
    assert values(engine, [Job("slow", sleep, (1.5,)), *(Job("fast", sleep, (0.01,)) for _ in range(3))])[-1] == 1.5


def test_jobs_are_drawn_when_a_worker_is_free_and_none_asks_again_later(engine: Executor) -> None:
    """The second is made from the value of the first."""
    came: list[int] = []

    def jobs() -> Iterator[Job | None]:
        yield Job("first", add, (1,))
        while not came:
            yield None
        yield Job("second", add, (came[0],))

    for _, (value, _) in engine.map(jobs(), [Job("load", load, (None, 5))] * 2, LITTLE, "test"):
        came.append(value)
    assert came == [6, 11]


@pytest.mark.parametrize(("wrong", "said"), [("user", "^user$"), ("other", "job seven.*ZeroDivisionError")])
def test_what_a_job_raises_is_raised_here(engine: Executor, wrong: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        values(engine, [Job("job seven", fail, (wrong,))])


def test_a_setup_that_fails_says_so(engine: Executor) -> None:
    with pytest.raises(UserError, match=r"user|died"):
        values(engine, [Job("job", sleep, (0,))], setup=Job("start", fail, ("user",)))


def test_a_job_that_ends_its_worker_is_named(engine: Executor) -> None:
    with pytest.raises(UserError, match=r"(?s)job seven.*lack of memory.*kept"):
        values(engine, [Job("job seven", die)], workers=1)


def test_closed_it_ends_what_runs(engine: Executor) -> None:
    jobs = [Job("fast", add, (0,)), *(Job("slow", sleep, (600.0,)) for _ in range(3))]
    running = engine.map(iter(jobs), [Job("load", load, (None,))] * 2, LITTLE, "test")
    _, (_, pid) = next(running)
    begun = time.monotonic()
    running.close()
    assert time.monotonic() - begun < 20
    while not gone(pid):
        assert time.monotonic() - begun < 20
        time.sleep(0.1)


def test_each_setup_has_its_worker_and_is_named_when_a_job_begins(engine: Executor) -> None:
    said: list[tuple[str, str]] = []
    setups = [Job(name, load, (None, value)) for name, value in (("a", 1), ("b", 2))]
    jobs = [Job(str(n), add, (n * 10,)) for n in range(6)]
    found = {}
    for job, (value, _) in engine.map(jobs, setups, LITTLE, "test", begun=lambda job, at: said.append((job.name, at))):
        found[job.name] = value
    assert [name for name, _ in said] == [job.name for job in jobs]
    assert found == {name: int(name) * 10 + {"a": 1, "b": 2}[at] for name, at in said}


def test_threads_are_those_of_the_command(engine: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would say one."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (found,) = values(engine, [Job("threads", threads)], workers=1)
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["CUDA_VISIBLE_DEVICES"] != "", "robosuite trips on it"


def test_on_this_disk_files_are_used_in_place(engine: Executor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_text("data")
    target = tmp_path / "out/b"
    job = Job("copy", copy, (tmp_path / "in/a", target), (Files(tmp_path / "in"),), (Files(target.parent),))
    assert values(engine, [job]) == [(str(tmp_path / "in/a"), str(target))]
    assert target.read_text() == "data"
    assert not list(tmp_path.rglob(".tmp*"))


def test_a_worker_writes_while_the_command_holds_the_folder(
    engine: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the working directory of the command is not that of the workers."""
    monkeypatch.chdir(tmp_path)
    folder = Path("out")

    def job(name: str) -> Job:
        return Job(f"writes {name}", write, (folder / name,), writes=(Files(folder),))

    with locked(folder) as taken:
        values(engine, [job("before")])
        assert (tmp_path / "out/before").exists()
        (folder / f"{PREFIX}{taken.number + 1:06d}").write_text("{}")  # another process has taken it
        with pytest.raises(UserError, match="no longer held"):
            values(engine, [job("after")])
    assert not (tmp_path / "out/after").exists()


def test_processes_of_this_machine_are_the_default() -> None:
    assert isinstance(executor(), Local)
    other: Any = object()
    with using(other):
        assert executor() is other
    assert isinstance(executor(), Local)


# ---------------------------------------------------------------- what only a cluster has


@pytest.mark.slow
def test_without_this_disk_files_are_sent_and_brought_back(on_ray: Any, tmp_path: Path) -> None:
    from la_reconvla.execution.on_ray import Ray

    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/a").write_text("data")
    target = tmp_path / "out/b"
    target.parent.mkdir()
    target.write_text("begun ")
    reads, writes = (Files(tmp_path / "in"),), (Files(target.parent, without=("state",)),)
    jobs = [Job("copy", copy, (tmp_path / "in/deep/a", target), reads, writes) for _ in range(1)]
    with locked(target.parent):
        ((read, wrote),) = values(Ray(ship=True), jobs)
    assert read != str(tmp_path / "in/deep/a")
    assert read.endswith(str(tmp_path / "in/deep/a"))
    assert wrote.endswith(str(target))
    assert not Path(wrote).exists(), "the worker's copies go with it"
    assert target.read_text() == "begun data"
    assert (tmp_path / "in/deep/a").read_text() == "data"
    assert sorted(p.name for p in target.parent.iterdir() if not p.name.startswith(PREFIX)) == ["b"]


@pytest.mark.slow
def test_the_job_of_a_worker_that_died_is_done_by_another(on_ray: Any, tmp_path: Path) -> None:
    from la_reconvla.execution.on_ray import Ray

    jobs = [Job("dies once", die, (tmp_path / "flag",)), *(Job("other", sleep, (0.2,)) for _ in range(4))]
    assert sorted(map(str, values(Ray(), jobs))) == ["0.2"] * 4 + ["survived"]


@pytest.mark.slow
def test_what_no_node_has_is_refused_at_once(on_ray: Any) -> None:
    from la_reconvla.execution.on_ray import Ray

    for needs, lacks in ((Needs(gpus=1), "1 GPUs"), (Needs(cpus=99), "99 CPUs"), (Needs(memory=10**15), "GB")):
        with pytest.raises(UserError, match=f"(?s)training needs .*{lacks}.*no node of the cluster has that"):
            next(Ray().map([], [Job("start", nothing)], needs, "training"))


@pytest.mark.slow
def test_nodes_that_others_use_are_waited_for_in_bounded_time(on_ray: Any) -> None:
    from la_reconvla.execution.on_ray import Ray

    taken = Ray().map(
        iter([Job("short", sleep, (0.0,)), *(Job("long", sleep, (600.0,)) for _ in range(9))]),
        [Job("start", nothing)] * 2,
        Needs(cpus=2, memory=100_000_000),
        "test",
    )
    next(taken)
    time.sleep(5)  # until both have begun
    begun = time.monotonic()
    try:
        with pytest.raises(UserError, match="no worker for training has begun in 3 s"):
            next(Ray(start=3).map([], [Job("start", nothing)], LITTLE, "training"))
    finally:
        taken.close()
    assert time.monotonic() - begun < 20


@pytest.mark.slow
def test_the_jobs_of_a_lost_node_are_done_on_another(on_ray: Any, tmp_path: Path) -> None:
    """All results, each once. Last in this file: the node is gone."""
    from la_reconvla.execution.on_ray import Ray

    jobs = [Job(str(n), add, (n,)) for n in range(3)] + [Job("s", sleep, (1.0,)) for _ in range(8)]
    running = Ray().map(iter(jobs), [Job("load", load, (None, 0))] * 4, LITTLE, "test")
    found = [next(running)[0]]
    on_ray.lose_one()
    found += [job for job, _ in running]
    assert len(found) == len(set(found)) == len(jobs)
