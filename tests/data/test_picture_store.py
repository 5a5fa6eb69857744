"""Pictures that do not fit in memory give the same batches, bit for bit, in the same order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from test_hdf5 import make_header, make_recording

from la_reconvla.data import picture_store
from la_reconvla.data.demonstrations import Demonstrations, Episode
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_writer import write_file
from la_reconvla.data.samples import Samples, batch_indices
from la_reconvla.errors import UserError


@pytest.fixture
def shown(tmp_path: Path) -> Demonstrations:
    for task in range(2):
        recordings = [make_recording(task * 3 + i, task, length=7 + i, stride=2) for i in range(3)]
        write_file(tmp_path / f"{task}_demo.hdf5", make_header(task, stride=2), recordings)
    return open_demonstrations(tmp_path)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_store, "free_memory", lambda: 1000.0)


def files(shown: Demonstrations) -> list[Path]:
    return sorted((shown.episodes[0].path.parent / picture_store.FOLDER).glob("*.u8"))


@pytest.mark.parametrize("size", [8, 5])
@pytest.mark.parametrize("stride", [2, 4])
def test_batches_are_equal(shown, monkeypatch: pytest.MonkeyPatch, size: int, stride: int) -> None:
    inside = Samples(shown, size, 3, stride=stride, wrist=True, proprio="all")
    assert files(shown) == []
    monkeypatch.setattr(picture_store, "free_memory", lambda: 1000.0)
    outside = Samples(shown, size, 3, stride=stride, wrist=True, proprio="all")
    assert len(files(shown)) == 2
    for step in range(9):
        indices = batch_indices(4, step, 5, len(inside))
        a, b = inside.batch(indices), outside.batch(indices)
        for field in fields(a):
            one, other = getattr(a, field.name), getattr(b, field.name)
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    some = np.array([-1, 0])
    assert torch.equal(inside.batch(some).images, outside.batch(some).images)
    with pytest.raises(IndexError):
        outside.batch(np.array([len(outside)]))


@pytest.mark.usefixtures("no_memory")
def test_a_file_is_read_again_and_belongs_to_its_content(shown, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    first = Samples(shown, 8, 2).batch(np.arange(4))
    [path] = files(shown)
    assert path.read_bytes() == np.concatenate([e.frames() for e in shown.episodes]).transpose(0, 3, 1, 2).tobytes()
    said = capsys.readouterr().err
    assert "too many for the 0.0 GB" in said
    assert str(path) in said
    with monkeypatch.context() as patched:
        patched.setattr(Episode, "frames", lambda *_: pytest.fail("read once more"))
        assert torch.equal(Samples(shown, 8, 2).batch(np.arange(4)).images, first.images)
    assert "are read from" in capsys.readouterr().err
    Samples(shown, 4, 2)
    Samples(Demonstrations(shown.episodes[::-1]), 8, 2)
    changed = make_recording(3, 1, length=7, stride=2)
    changed.frames[1] ^= 1  # none of the three that the hash looks at
    write_file(
        shown.episodes[3].path,
        make_header(1, stride=2),
        [changed, *(make_recording(3 + i, 1, length=7 + i, stride=2) for i in (1, 2))],
    )
    again = open_demonstrations(shown.episodes[0].path.parent)
    assert again.hash == shown.hash
    batch = Samples(again, 8, 2).batch(np.arange(len(Samples(again, 8, 2))))
    found = np.concatenate([e.frames() for e in again.episodes]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(batch.images.numpy(), found)
    assert len(files(shown)) == 4


@pytest.mark.usefixtures("no_memory")
def test_a_file_that_is_half_there_is_written_again_or_named(shown) -> None:
    whole = Samples(shown, 8, 2)
    [path] = files(shown)
    content = path.read_bytes()
    os.truncate(path, 100)
    with pytest.raises(UserError, match="is cut off: delete it"):
        whole.batch(np.arange(3))
    Samples(shown, 8, 2)
    assert path.read_bytes() == content


@pytest.mark.usefixtures("no_memory")
def test_a_damaged_picture_leaves_no_file(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(episode: Episode, camera: str, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        if episode is shown.episodes[-1]:
            raise UserError("damaged")
        yield from (np.zeros((8, 8, 3), np.uint8) for _ in numbers)

    shown.hash  # noqa: B018  (reads pictures itself, once)
    monkeypatch.setattr(Episode, "stored", read)
    with pytest.raises(UserError, match="damaged"):
        Samples(shown, 8, 2)
    assert [p.suffix for p in (shown.episodes[0].path.parent / picture_store.FOLDER).iterdir()] == [".lock"]


@pytest.mark.usefixtures("no_memory")
def test_a_folder_that_cannot_be_written_to_has_its_pictures_among_temporary_files(
    shown, tmp_path_factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown.episodes[0].path.parent / picture_store.FOLDER).touch()  # stands for a read-only disk
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(picture_store.tempfile, "gettempdir", lambda: str(temporary))
    assert len(Samples(shown, 8, 2).batch(np.arange(2)).images) == 2
    [folder] = temporary.iterdir()
    assert folder.stat().st_mode & 0o77 == 0
    assert len(list(folder.glob("*.u8"))) == 1


@pytest.mark.slow
def test_more_pictures_than_a_limit_allows_are_loaded(tmp_path: Path) -> None:
    """300 MB of pictures under a limit that leaves 200 MB beside the libraries."""
    write_file(tmp_path / "a_demo.hdf5", make_header(size=8), [make_recording(i, length=500) for i in range(4)])
    code = (
        "import sys, psutil, resource, numpy as np\n"
        "from la_reconvla.data.hdf5 import open_demonstrations\n"
        "from la_reconvla.data.samples import Samples\n"
        "limit = psutil.Process().memory_info().vms + 200_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "print(Samples(open_demonstrations(sys.argv[1]), 224, 2).batch(np.arange(0, 2000, 40)).images.sum().item())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    inside = Samples(open_demonstrations(tmp_path), 224, 2).batch(np.arange(0, 2000, 40)).images.sum().item()
    assert int(done.stdout) == inside
    assert "too many for" in done.stderr
