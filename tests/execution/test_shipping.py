"""Files for workers without this disk: what is sent, where it is put, and what comes back."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from la_reconvla.errors import UserError
from la_reconvla.execution import shipping
from la_reconvla.execution.jobs import Files, Job, nothing
from la_reconvla.execution.on_ray import cluster
from la_reconvla.execution.ray_worker import graphics, installed
from la_reconvla.execution.shipping import Receiver, Sender, here, sealed


@dataclass(frozen=True)
class Held:
    path: Path
    words: str


def job(reads: Path, writes: Path) -> Job:
    return Job("job", nothing, reads=(Files(reads),), writes=(Files(writes, without=("state",)),))


def sent(sender: Sender, receiver: Receiver, asked: Job) -> list[Any]:
    manifests = sender.manifests(asked)
    receiver.place(manifests, {digest: sender.content(digest) for digest in receiver.lacking(manifests)})
    return manifests


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    reads, writes = tmp_path / "data", tmp_path / "run"
    for path, text in ((reads / "a", "one"), (reads / "deep/b", "two"), (writes / "log", "begun\n")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (reads / ".hidden").write_text("never sent")
    return reads, writes


def test_what_is_here_is_used_in_place(folders: tuple[Path, Path], tmp_path: Path) -> None:
    reads, writes = folders
    sender, receiver = Sender(), Receiver(tmp_path / "node")
    manifests = sender.manifests(job(reads, writes))
    assert receiver.lacking(manifests) == []
    assert receiver.path(str(reads / "a")) == str(reads / "a")
    (writes / "log").write_text("more")
    assert receiver.brought(manifests, job(reads, writes).writes) == []
    sender.close()
    assert [path.name for path in writes.iterdir()] == ["log"]


def test_another_disk_with_equal_files_is_read_in_place_but_not_written_to(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """As a home folder that was copied: its data are as good, but nobody would see what is written there."""
    reads, writes = folders
    sender, receiver = Sender(), Receiver(tmp_path / "node")
    manifests = sender.manifests(job(reads, writes))
    sender.close()  # the proof is not on that disk
    manifests = [manifests[0], manifests[1]]
    assert receiver.lacking(manifests)
    assert receiver.path(str(reads / "a")) == str(reads / "a")
    assert receiver.path(str(writes / "log")) != str(writes / "log")


def test_what_is_not_here_is_put_aside_and_what_is_new_comes_back_in_order(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    reads, writes = folders
    sender, receiver, asked = Sender(), Receiver(tmp_path / "node", ship=True), job(*folders)
    manifests = sent(sender, receiver, asked)
    for folder, name, text in ((reads, "a", "one"), (reads, "deep/b", "two"), (writes, "log", "begun\n")):
        assert Path(receiver.path(str(folder / name))).read_text() == text
    assert not Path(receiver.path(str(reads / ".hidden"))).exists()
    made = Path(receiver.path(str(writes)))
    for name in ("z_first", "state/large", "sub/second", "log", "a_last"):
        (made / name).parent.mkdir(exist_ok=True)
        with (made / name).open("a") as file:
            file.write(name)
        time.sleep(0.01)
    brought = receiver.brought(manifests, asked.writes)
    names = [os.path.relpath(path, writes) for path, _ in brought]
    assert names == ["z_first", "sub/second", "log", "a_last"]
    shipping.write_brought(brought)
    assert (writes / "log").read_text() == "begun\nlog"
    assert not (writes / "state").exists()
    receiver.clear(asked.writes)
    assert not made.exists()
    assert Path(receiver.path(str(reads / "a"))).read_text() == "one"


def test_what_a_job_changes_is_not_what_the_next_one_reads(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sender, receiver, asked = Sender(), Receiver(tmp_path / "node", ship=True), job(*folders)
    log = Path(receiver.path(str(folders[1] / "log")))
    for _ in range(2):
        sent(sender, receiver, asked)
        log = Path(receiver.path(str(folders[1] / "log")))
        with log.open("a") as file:
            file.write("changed")
        assert log.read_text() == "begun\nchanged"
        receiver.clear(asked.writes)


def test_each_file_is_sent_once_to_a_machine(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sender, asked = Sender(), job(*folders)
    sent(sender, Receiver(tmp_path / "node", ship=True), asked)
    other = Receiver(tmp_path / "node", ship=True)
    assert other.lacking(sender.manifests(asked)) == []
    shutil.copytree(folders[0], tmp_path / "renamed")
    assert other.lacking(sender.manifests(job(tmp_path / "renamed", folders[1]))) == []


def test_a_file_that_changed_on_its_way_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sender, receiver = Sender(), Receiver(tmp_path / "node", ship=True)
    manifests = sender.manifests(job(*folders))
    contents = dict.fromkeys(receiver.lacking(manifests), b"damage")
    with pytest.raises(OSError, match="changed on its way"):
        receiver.place(manifests, contents)


def test_a_folder_inside_one_that_is_put_aside_is_aside_too(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Even where all its files are on the other disk, too."""
    _, writes = folders
    sender, receiver = Sender(), Receiver(tmp_path / "node")
    outer = sender.manifests(Job("start", nothing, writes=(Files(writes, ()),)))
    sender.close()
    receiver.lacking(outer)
    (writes / "inner").mkdir()
    (writes / "inner/a").write_text("x")
    receiver.lacking(sender.manifests(Job("job", nothing, reads=(Files(writes / "inner"),))))
    assert receiver.path(str(writes / "inner/a")).startswith(str(tmp_path / "node"))


def test_paths_are_those_of_the_worker(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = Sender(), Receiver(tmp_path / "node", ship=True)
    sent(sender, receiver, job(*folders))
    monkeypatch.setattr(shipping, "receiver", receiver)
    monkeypatch.chdir(tmp_path)
    brought_along = pytest.importorskip("ray.cloudpickle", reason="the extra `cluster` is not installed")
    value = [Held(folders[0] / "a", str(folders[0])), Path("data/deep/b"), Path("not/sent"), Path("/usr")]
    held, relative, *others = pickle.loads(sealed(brought_along.CloudPickler, value))
    assert held.path.read_text() == "one"
    assert held.words == str(folders[0]), "text stays as it is"
    assert relative.read_text() == "two"
    assert others == [Path("not/sent"), Path("/usr")]
    monkeypatch.setattr(shipping, "receiver", None)
    assert here("a", "/x/a") == Path("a")


def test_what_nobody_asked_for_in_a_week_goes(tmp_path: Path) -> None:
    node = tmp_path / "node"
    old, new = node / "objects/old", node / "objects/new"
    for path in (old, new, node / "worker-killed/file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    long_ago = time.time() - shipping.KEPT - 60
    for path in (old, node / "worker-killed"):
        os.utime(path, (long_ago, long_ago))
    Receiver(node)
    assert (old.exists(), new.exists(), (node / "worker-killed").exists()) == (False, True, False)


@pytest.mark.parametrize(
    ("assigned", "number", "gpus", "inherited", "visible", "draws"),
    [
        (["3"], 0, 8, {}, "3", "3"),
        (["1", "2"], 0, 8, {"CUDA_VISIBLE_DEVICES": "1,2"}, "1,2", "1"),
        (["MIG-77aa"], 0, 1, {}, "MIG-77aa", None),  # EGL has numbers only
        ([], 5, 4, {"CUDA_VISIBLE_DEVICES": ""}, None, "1"),  # Ray hides GPUs so; each draws on the next one
        ([], 5, 4, {"CUDA_VISIBLE_DEVICES": "2"}, "2", None),
        ([], 1, 0, {}, None, None),
        ([], 1, 0, {"MUJOCO_EGL_DEVICE_ID": "0"}, None, "0"),
    ],
)
def test_a_worker_draws_on_a_gpu_that_it_sees(
    assigned: list[str], number: int, gpus: int, inherited: dict[str, str], visible: str | None, draws: str | None
) -> None:
    assert graphics(assigned, number, gpus, inherited) == {
        "CUDA_VISIBLE_DEVICES": visible,
        "MUJOCO_EGL_DEVICE_ID": draws,
    }


def test_what_must_be_equal_on_all_nodes() -> None:
    assert {"Python", "torch", "numpy", "source of la_reconvla"} <= set(installed())


def test_an_address_where_nothing_answers_is_said_at_once() -> None:
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # does not listen
        for address, said in (
            (f"ray://127.0.0.1:{taken.getsockname()[1]}", "nothing answers there"),
            ("ray://no-such-host.invalid:10001", "nothing answers there"),
            ("ray://127.0.0.1:port", "nothing answers there"),
            ("10.0.0.1:6379", "give auto, or the address of a cluster's head"),
        ):
            begun = time.monotonic()
            with pytest.raises(UserError, match=said), cluster(address):
                raise AssertionError("there is no cluster")
            assert time.monotonic() - begun < 20


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--cluster needs Ray: .*\[cluster\]"), cluster("auto"):
        raise AssertionError("there is no Ray")
