"""Leases: one worker a folder on machines that share a disk; nothing is done twice, others go on for the dead."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from la_reconvla import leases
from la_reconvla.errors import UserError
from la_reconvla.leases import BEAT, STALE, Held, Owner, release, take
from la_reconvla.storage import append_jsonl, locked, write_json

HOLDING = """
import sys, time
from la_reconvla.storage import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
WORKING = """
import os, random, signal, sys, time
from pathlib import Path
from la_reconvla import leases
chance, jobs = random.Random(int(sys.argv[2])), sorted(Path(sys.argv[1]).iterdir())
while open_jobs := [job for job in jobs if not (job / "done").exists()]:
    for job in open_jobs:
        try:
            with leases.lease(job, keep=sys.argv[4] == "keep"):
                if (job / "done").exists():
                    continue
                with (job / "begun").open("a") as file:
                    file.write(f"{os.getpid()}\\n")
                time.sleep(chance.random() / 200)
                if chance.random() < float(sys.argv[3]):
                    os.kill(os.getpid(), signal.SIGKILL)
                leases.require(job / "done")
                with (job / "done").open("a") as file:
                    file.write(f"{os.getpid()}\\n")
        except leases.Held:
            pass
"""


def far(name: str = "far") -> Owner:
    """A process of another machine."""
    return Owner(name, "0" * 8, 1, 1.0)


def silent(folder: Path, seconds: float) -> None:
    """The heart of whoever holds a folder stopped so long ago."""
    path = max(folder.glob(f"{leases.PREFIX}*"))
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


def test_a_second_process_is_told_host_and_process_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(Held, match=f"process {holder.pid} on {os.uname().nodename}"), locked(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    while leases.began(holder.pid) is not None:
        pass
    with locked(tmp_path):  # at once, although nobody has buried it and its last heartbeat is new
        pass
    holder.wait()


def test_another_machine_holds_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    taken = take(tmp_path, far())
    with pytest.raises(Held, match=r"process 1 on far.*free 180 seconds after"), locked(tmp_path):
        pass
    silent(tmp_path, STALE - 5)
    with pytest.raises(Held), locked(tmp_path):
        pass
    leases.touch(taken.path)
    silent(tmp_path, STALE + 5)
    with locked(tmp_path):
        assert not taken.held()
    assert STALE > 3 * BEAT


def test_clocks_that_differ_by_a_day_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(tmp_path, far())
    monkeypatch.setattr("time.time", lambda: 1e10)
    with pytest.raises(Held), locked(tmp_path):
        pass


def test_who_was_overtaken_writes_nothing_more_and_gives_nothing_back(tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    with locked(tmp_path / "cell") as mine:
        mine.below.append(tmp_path / "beside")
        write_json(tmp_path / "cell/a.json", 1)
        write_json(tmp_path / "beside/a.json", 1)
        mine.path.write_text(json.dumps({**json.loads(mine.path.read_text()), "machine": "0" * 8}))
        silent(tmp_path / "cell", STALE + 5)
        other = take(tmp_path / "cell", far("winner"))
        for name in ("cell/a.json", "cell/below/a.json", "beside/a.json"):
            with pytest.raises(UserError, match="no longer held by this process"):
                write_json(tmp_path / name, 2)
            with pytest.raises(UserError, match="no longer held by this process"):
                append_jsonl(tmp_path / f"{name}l", 2)
        write_json(tmp_path / "elsewhere.json", 2)
    assert (tmp_path / "cell/a.json").read_text() == (tmp_path / "beside/a.json").read_text() == "1\n"
    assert not list(tmp_path.rglob("*.jsonl"))
    assert other.held()
    with pytest.raises(Held, match="winner"):
        take(tmp_path / "cell")


def test_who_looked_long_ago_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look and its file two others come, of whom the second is at work, and files of before are gone."""
    release(take(tmp_path))
    create, winners = leases._create, []

    def late(draft: Path, mine: leases.Lease) -> bool:
        monkeypatch.setattr(leases, "_create", create)
        release(take(tmp_path, far("first")))
        winners.append(take(tmp_path, far("second")))
        return create(draft, mine)

    monkeypatch.setattr(leases, "_create", late)
    with pytest.raises(Held, match="second"):
        take(tmp_path)
    assert winners[0].held()


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def come(name: str, got: list[leases.Lease]) -> None:
        start.wait()
        with contextlib.suppress(Held):
            got.append(take(tmp_path, far(name)))

    for turn in range(5):
        got: list[leases.Lease] = []
        threads = [threading.Thread(target=come, args=(f"{turn}-{n}", got)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        assert got[0].held()
        silent(tmp_path, STALE + 5)


@pytest.mark.parametrize("kept", ["keep", "remove"])
def test_processes_and_kills_do_every_job_once(tmp_path: Path, kept: str) -> None:
    """Six processes, of which those that are killed begin a job and do not end it; a job that ended began no more."""
    for number in range(24):
        (tmp_path / f"{number:02d}").mkdir()
    command = [sys.executable, "-c", WORKING, str(tmp_path)]
    mortal = [subprocess.Popen([*command, str(seed), "0.2", kept]) for seed in range(4)]
    immortal = [subprocess.Popen([*command, str(seed), "0", kept]) for seed in range(4, 6)]
    killed = [process.pid for process in mortal if process.wait(120) == -signal.SIGKILL]
    assert [process.wait(120) for process in immortal] == [0, 0]
    for job in tmp_path.iterdir():
        begun, done = ((job / name).read_text().split() for name in ("begun", "done"))
        assert len(done) == 1
        assert begun[-1] == done[0]
        assert set(map(int, begun[:-1])) <= set(killed)
        assert bool(list(job.glob(f"{leases.PREFIX}*"))) == (kept == "keep")


class Machine:
    """What one process of another machine believes, with the clock of the disk in the test's hand."""

    def __init__(self, name: str):
        self.owner, self.lease = far(name), None


WHAT = st.sampled_from(["take", "beat", "release", "wait"])
STEPS = st.lists(st.tuples(WHAT, st.integers(0, 2)), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_at_any_time_one_at_most_may_write(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    """Against a model in memory: whose turn it is, and when that one was last heard of."""
    folder, machines = tmp_path_factory.mktemp("disk"), [Machine(name) for name in "abc"]
    holder, heard = None, 0.0
    for step, which in steps:
        machine = machines[which]
        if step == "wait":
            heard += STALE / 2 + 1
            if list(folder.glob(f"{leases.PREFIX}*")):
                silent(folder, STALE / 2 + 1)
        elif step == "take":
            if holder is None or heard > STALE:
                machine.lease = take(folder, machine.owner)
                holder, heard = machine, 0.0
            else:
                with pytest.raises(Held, match=f"process 1 on {holder.owner.host}"):
                    take(folder, machine.owner)
        elif machine.lease is not None and step == "beat" and machine.lease.held():
            leases.touch(machine.lease.path)
            heard = 0.0
        elif machine.lease is not None and step == "release":
            release(machine.lease)
            if holder is machine:
                holder = None
            machine.lease = None
        may = [one for one in machines if one.lease is not None and one.lease.held()]
        assert may == ([holder] if holder else [])
        assert len(list(folder.iterdir())) <= 1


def test_a_process_that_may_not_be_looked_at_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: type[Exception]):
        def refused(*_: object) -> None:
            raise error

        return refused

    here = Owner("here", leases.this_machine(), 1, 5.0)
    monkeypatch.setattr("psutil.Process", refuse(psutil.AccessDenied))
    monkeypatch.setattr("os.kill", refuse(PermissionError))
    assert here.dead is False
    monkeypatch.setattr("os.kill", refuse(ProcessLookupError))
    assert here.dead is True


def test_only_files_of_the_dead_are_cleared(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    here = leases.this_machine()
    kept = [f".tmp-{here}-{os.getpid()}-01234567-a", ".tmp-00000000-1-01234567-new"]
    gone = [f".tmp-{here}-{int(dead.stdout)}-01234567-b", ".tmp-00000000-1-01234567-old", ".tmpfiMTXs", ".tmp-0123-c"]
    cells = tmp_path / "mine", tmp_path / "others"
    for name in (*kept, *gone):
        for cell in cells:
            cell.mkdir(exist_ok=True)
            (cell / name).write_text("half")
            if name.endswith("old"):
                os.utime(cell / name, (1e9, 1e9))
    take(cells[1], replace(far(), host="theirs"))
    with locked(tmp_path):
        assert {path.name for path in cells[0].iterdir()} == set(kept)
        assert {*kept, *gone} < {path.name for path in cells[1].iterdir()}
