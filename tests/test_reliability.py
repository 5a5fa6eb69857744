"""Damaged files of every kind end in an explained error or are read: the short form of `benchmarks/reliability.py`."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import reliability
import torch

from la_reconvla.errors import UserError

READERS = reliability.readers()


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_explained_or_read(name: str) -> None:
    found = reliability.fuzz(name, range(40))
    assert found.wrong == []
    assert found.counts["refused"] > 5
    assert found.counts["read"] > 0
    assert found.memory - found.begun < reliability.MEMORY


def test_inputs_can_be_made_again(tmp_path: Path) -> None:
    name, reader = "results.json", READERS["results.json"]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        reader.make(tmp_path / folder)
        reliability.damage(reader, name, 3, tmp_path / folder)
    first, second = ((tmp_path / folder / "results.json").read_bytes() for folder in ("a", "b"))
    assert first == second


def read_badly(kind: str):
    def read(folder: Path) -> None:
        content = (folder / "x.json").read_bytes()
        if content == b'{"a": 1}':
            return
        match kind:
            case "refused":
                raise UserError("no")
            case "another exception":
                raise KeyError("a")
            case "written to":
                (folder / "left").touch()
            case "hung":
                while True:
                    pass
            case "process ended":
                import os

                os._exit(3)

    return read


@pytest.mark.parametrize("kind", reliability.OUTCOMES)
def test_each_outcome_is_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "SECONDS", 1)
    changed = (lambda path, draws: path.write_text("{}"),)
    reader = reliability.Reader(
        lambda folder: (folder / "x.json").write_text('{"a": 1}'), read_badly(kind), {".json": changed}
    )
    found = reliability.fuzz("x", range(2), reader)
    assert found.counts == {kind: 2}
    assert len(found.wrong) == (0 if kind in ("read", "refused") else 2)


class Owned:
    """Garbage that only the process that made it can free, as a video decoder with threads: elsewhere it waits forever,
    here it ends the process, which is quicker."""

    def __init__(self):
        self.me, self.of = self, os.getpid()

    def __del__(self):
        if os.getpid() != self.of:
            os._exit(3)


def test_children_do_not_free_what_this_process_has_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "SECONDS", 5)
    here = os.getpid()
    reader = reliability.Reader(
        lambda folder: (folder / "x.json").write_text("{}"),
        lambda _: os.getpid() != here and gc.collect(),
        {".json": (lambda path, draws: None,)},
    )
    gc.disable()
    try:
        Owned()
        assert reliability.fuzz("x", range(2), reader).counts == {"read": 2}
    finally:
        gc.enable()


def test_what_is_read_may_ask_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child that uses the threads of its parent waits forever, whatever file it reads."""

    def read(folder: Path) -> None:
        torch.set_num_threads(2)
        torch.ones(1_000_000).exp()

    monkeypatch.setattr(reliability, "SECONDS", 5)
    reader = reliability.Reader(
        lambda folder: (folder / "x.json").write_text("{}"), read, {".json": (lambda path, draws: None,)}
    )
    assert reliability.fuzz("x", range(2), reader).counts == {"read": 2}
