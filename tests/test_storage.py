"""Atomic files, JSON lines after a kill, locks and the progress bar."""

from __future__ import annotations

import errno
import io
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from la_reconvla import layout
from la_reconvla import progress as progress_module
from la_reconvla.errors import UserError
from la_reconvla.leases import PREFIX
from la_reconvla.progress import RemoteTicker, followed_by, progress
from la_reconvla.storage import (
    TEMPORARY,
    append_jsonl,
    atomic_write,
    claim,
    locked,
    read_json,
    read_jsonl,
    require_free_space,
    write_json,
)
from la_reconvla.typed_json import parse

RECORDS = st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans()), max_size=6)


def test_a_finished_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"one")
        assert not path.exists()
        assert temporary.suffix == ".bin"
    assert path.read_bytes() == b"one"
    assert os.listdir(path.parent) == ["file.bin"]


def test_a_claimed_folder_is_kept_for_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "run" / "config.json"
    identity = {"rate": 0.1, "sizes": (1, 2), "model": {"width": 8, "deep": {"heads": 2}}}
    first = claim(path, identity, begun="today")
    assert first == {"rate": 0.1, "sizes": [1, 2], "model": {"width": 8, "deep": {"heads": 2}}, "begun": "today"}
    assert claim(path, identity, begun="tomorrow")["begun"] == "today"
    before = path.read_bytes()
    other = {"rate": 0.2, "sizes": (1, 3), "model": {"width": 8, "deep": {"heads": 4}}, "new": None}
    with pytest.raises(UserError, match=r"different: rate: 0.1, now 0.2, sizes, model.deep.heads: 2, now 4, new"):
        claim(path, other)
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = (
        "import sys, os, signal\nfrom la_reconvla.storage import atomic_write\n"
        "with atomic_write(sys.argv[1]) as t:\n    t.write_text('ne')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    below = tmp_path / "state" / "deep"
    below.mkdir(parents=True)
    (below / f"{TEMPORARY}0123-file").write_text("half")
    (below / ".tmpfiMTXs").write_text("half of what safetensors writes")
    with locked(tmp_path):  # the next one to work here clears up
        assert sorted(os.listdir(tmp_path)) == [f"{PREFIX}000000", "file", "state"]
        assert not os.listdir(below)


@pytest.mark.parametrize("error", [OSError(28, "x"), RuntimeError("... error message = 'No space left on device'")])
def test_a_full_disk_is_explained(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UserError, match="disk is full"), atomic_write(path):
        raise error
    assert path.read_text() == "old"


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_really_full_disk_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), atomic_write(tmp_path / "x"), open("/dev/full", "wb") as file:
        file.write(b"x")


def test_json_keeps_what_it_is_given(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Config:
        path: Path
        sizes: tuple[int, ...]

    path = tmp_path / "a.json"
    write_json(
        path, {"c": Config(Path("x/y"), (1, 2)), "n": np.float32(0.5), "a": np.arange(2), "bad": math.nan, 3: "é"}
    )
    assert read_json(path) == {"c": {"path": "x/y", "sizes": [1, 2]}, "n": 0.5, "a": [0, 1], "bad": None, "3": "é"}


def test_json_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "missing.json")
    (tmp_path / "torn.json").write_text('{"a": ')
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "torn.json")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=RECORDS, after=RECORDS, data=st.data())
def test_json_lines_survive_a_torn_tail(tmp_path: Path, before: list, after: list, data: st.DataObject) -> None:
    path = tmp_path / "lines.jsonl"
    path.unlink(missing_ok=True)
    append_jsonl(path, *before)
    unfinished = json.dumps({"an": "unfinished record", "n": 12}).encode()
    torn = data.draw(st.integers(0, len(unfinished)))
    with path.open("ab") as file:
        file.write(unfinished[:torn])
    assert read_jsonl(path) == before
    append_jsonl(path, *after)
    assert read_jsonl(path) == before + after


def test_a_long_torn_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_jsonl(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    append_jsonl(path, {"a": 2})
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_json_lines_name_the_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_jsonl(path)
    assert read_jsonl(tmp_path / "missing.jsonl") == []


def test_free_space(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(UserError, match="are free"):
        require_free_space(tmp_path / "not" / "yet", 10**18)


@pytest.mark.parametrize("below", [".", "a/b"])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(UserError, match="a file is in the way"), locked(tmp_path / "runs" / below):
        pass
    with pytest.raises(UserError, match="a file is in the way"):
        write_json(tmp_path / "runs" / below / "x.json", 1)
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("la_reconvla.leases.take", lambda folder: (folder / "file" / "file").mkdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file is in the way"), locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK])
def test_a_mounted_disk_without_links_and_flushes_works(tmp_path, monkeypatch, number) -> None:
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("os.fsync", refuse)
    with locked(tmp_path), pytest.raises(UserError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        write_json(tmp_path / "a.json", {"a": 1})
        append_jsonl(tmp_path / "a.jsonl", {"b": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert read_jsonl(tmp_path / "a.jsonl") == [{"b": 2}]


def test_other_errors_of_flushes_are_errors(tmp_path, monkeypatch) -> None:
    def refuse(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="broken"):
        write_json(tmp_path / "a.json", {})


def _tick(ticker: RemoteTicker) -> None:
    for _ in range(5):
        ticker.advance(1, note="from far")


def test_progress_counts_what_other_processes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "LINE_EVERY", 0.0)
    text = io.StringIO()
    context = multiprocessing.get_context("spawn")
    with progress("Working", total=20, unit="things", done=8, console=Console(file=text, width=200)) as bar:
        assert bar.pace() == "starting"
        ticker = bar.ticker(context)
        workers = [context.Process(target=_tick, args=(ticker,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        bar.advance(2)
        deadline = time.monotonic() + 10
        while "20/20" not in text.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = text.getvalue().splitlines()
    assert lines[-1].startswith("Working: 20/20, ")
    assert "from far" in lines[-1]


TICKING_TO_DEATH = """
import io, multiprocessing, time
from rich.console import Console
from la_reconvla.progress import progress

def tick(ticker, times):
    for _ in range(times):
        ticker.advance(1, note="x" * 1000)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with progress("Working", total=10**12, unit="things", console=Console(file=io.StringIO())) as bar:
        ticker = bar.ticker(context)
        doomed = [context.Process(target=tick, args=(ticker, 10**9)) for _ in range(4)]
        for process in doomed:
            process.start()
        while not bar._done:
            time.sleep(0.01)
        time.sleep(1)
        for process in doomed:
            process.kill()
            process.join()
        before = -1
        while before < bar._done:  # until all that they wrote is counted
            before = bar._done
            time.sleep(0.5)
        survivor = context.Process(target=tick, args=(ticker, 7))
        survivor.start()
        survivor.join()
    print("counted", bar._done - before)
"""


def test_a_process_killed_while_it_reports_blocks_nobody(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TICKING_TO_DEATH)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "counted 7\n"


def test_reports_to_a_bar_that_has_gone_are_dropped() -> None:
    with progress("Working", total=2, unit="things", console=Console(file=io.StringIO())) as bar:
        ticker = bar.ticker(multiprocessing.get_context("spawn"))
        ticker.advance(2)
    assert bar._done == 2  # what was reported in time is counted before the bar ends
    ticker.advance(1)


def test_progress_draws_a_bar_on_a_terminal() -> None:
    text = io.StringIO()
    with progress("Drawing", total=2, unit="things", console=Console(file=text, force_terminal=True, width=120)) as bar:
        bar.advance(2, note="a note")
    assert "Drawing" in text.getvalue()
    assert "2/2" in text.getvalue()


@pytest.mark.parametrize("width", [56, 80, 90, 120])
def test_a_bar_leaves_out_whole_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system=None)
    with followed_by(3600.0), progress("Training", total=4800, unit="steps", console=console) as bar:
        monkeypatch.setattr(bar, "_started", time.monotonic() - 100)
        bar.advance(1200, note="C3-0.1 seed 2")
    line = next(line for line in reversed(text.getvalue().splitlines()) if "Training" in line)
    assert "…" not in line
    assert len(line.strip()) <= width
    parts = ("5 min 00 s left", "about 1 h 05 min in all", "12.0 steps/s", "C3-0.1 seed 2")
    shown = [part for part in parts if part in line]
    assert shown == list(parts[: {56: 1, 80: 2, 90: 3, 120: 4}[width]])


@pytest.mark.parametrize("far", [False, True])
def test_steps_done_before_a_resume_do_not_enter_the_rate(monkeypatch: pytest.MonkeyPatch, far: bool) -> None:
    """40 steps in 100 s are 24 a minute, and the 1060 that are left take 2650 s, whoever reports them."""
    with progress("Pretraining", total=3600, unit="steps", console=Console(file=io.StringIO())) as bar:
        ticker = bar.ticker(multiprocessing.get_context("spawn")) if far else bar
        ticker.advance(2500, before=True)
        ticker.advance(40)
        while bar._done < 2540:
            time.sleep(0.001)
        monkeypatch.setattr(bar, "_started", time.monotonic() - 100)
        assert bar.pace() == "44 min 10 s left, 24.0 steps/min"


def test_a_log_has_one_line_with_separators() -> None:
    text = io.StringIO()
    with progress("Training", total=2, unit="steps", console=Console(file=text, width=40)) as bar:
        bar.advance(2, note="C4")
    assert re.fullmatch(r"Training: 2/2, 0 s left, [\d.]+ steps/s; C4\n", text.getvalue())


def test_a_log_leaves_out_a_note_that_does_not_fit() -> None:
    text = io.StringIO()
    with progress("Training", total=2, unit="steps", console=Console(file=text, width=40)) as bar:
        bar.advance(2, note="x" * 60)
    assert re.fullmatch(r"Training: 2/2, 0 s left, [\d.]+ steps/s\n", text.getvalue())


def test_json_that_no_parser_can_follow_is_refused(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "a.json").write_text(deep)
    (tmp_path / "a.jsonl").write_text(f"1\n{deep}\n")
    with pytest.raises(UserError, match="nested too deeply"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_jsonl(tmp_path / "a.jsonl")
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 400])
def test_numbers_that_json_does_not_have_are_refused(number: str) -> None:
    with pytest.raises(UserError, match="x is no finite number"):
        parse(float, json.loads(number), "x")


def test_a_message_can_always_be_printed() -> None:
    assert str(UserError("no task \ud800 é")).encode() == "no task \\ud800 é".encode()


def test_a_folder_that_is_not_there_is_answered_with_the_nearest_of_its_kind(tmp_path: Path, monkeypatch) -> None:
    for file in ("demos/a_demo.hdf5", "runs/quick/demonstrations/b_demo.hdf5", "pictures/c.png"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    assert layout.meant(Path("demo"), "*_demo.hdf5") == "; the nearest that is there: demos"
    assert layout.meant(Path("runs/quik/demonstrations"), "*_demo.hdf5").endswith(": runs/quick/demonstrations")
    assert layout.meant(tmp_path / "picture", "*.png") == f"; the nearest that is there: {tmp_path / 'pictures'}"
    assert layout.meant(Path("demo"), "results.json") == ""
    assert layout.meant(Path("/demo"), "*.png") == "", "the whole disk is not searched"
