"""Files for workers that may not have this disk: described by their hashes, sent where they are missing, brought back.

A worker has a folder to itself. A file of `/data/runs/x` that its machine lacks is put below that folder,
``<worker>/data/runs/x``, and paths in what it is sent are changed accordingly. Where all files of a folder are there
already, with the same hashes, they are used in place. A folder that is written to gets a file with a random content
first: only who has this disk has that file, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import time
import uuid
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from la_reconvla import leases
from la_reconvla.execution.jobs import Files, Job
from la_reconvla.storage import sha256_of, write_content

KEPT = 7 * 86400  # seconds that a node keeps files which nobody asks for
_PATH = type(Path())


@dataclass(frozen=True)
class Manifest:
    """What one folder holds of what a job asks for.

    Attributes:
        folder: absolute path here.
        files: (name below it, SHA-256) of each.
        written: whether the job makes files there.
    """

    folder: str
    files: tuple[tuple[str, str], ...]
    written: bool


class Hashes:
    """SHA-256 of files, each read once while it does not change."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def of(self, path: str | Path) -> str:
        """The hash; raises an `OSError` if it cannot be read."""
        stat = os.stat(path)
        key = str(path), stat.st_size, stat.st_mtime_ns
        if key not in self._known:
            self._known[key] = sha256_of(path)
        return self._known[key]


# ---------------------------------------------------------------- where the command runs


class Sender:
    """Describes files, and hands out the content of those that a worker lacks; closed, it removes what it made."""

    def __init__(self) -> None:
        self._hashes, self._paths, self._proofs = Hashes(), dict[str, str](), dict[str, Path]()

    def manifests(self, job: Job) -> list[Manifest]:
        """Of a job, those that it reads first."""
        asked = [(files, False) for files in job.reads] + [(files, True) for files in job.writes]
        return [self._manifest(files, written) for files, written in asked]

    def _manifest(self, files: Files, written: bool) -> Manifest:
        folder, names = os.path.abspath(files.folder), files.there()
        if written:
            names.append(self._proof(folder).name)
        hashed = []
        for name in names:
            path = os.path.join(folder, name)
            hashed.append((name, digest := self._hashes.of(path)))
            self._paths[digest] = path
        return Manifest(folder, tuple(hashed), written)

    def _proof(self, folder: str) -> Path:
        """A file that nobody has who has not this disk."""
        path = self._proofs.setdefault(folder, Path(folder, leases.temporary("proof")))
        if path.exists():
            leases.touch(path)  # `locked` on another machine removes temporary files that have not changed for long
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name, encoding="utf-8")
        return path

    def content(self, digest: str) -> bytes:
        """Of a file that a manifest named."""
        return Path(self._paths[digest]).read_bytes()

    def close(self) -> None:
        """Remove the proofs."""
        for path in self._proofs.values():
            path.unlink(missing_ok=True)


def sealed(pickler: Any, value: Any) -> bytes:
    """`value` for a worker, its paths to be changed there.

    Args:
        pickler: the class of the `cloudpickle` that Ray brings.
        value: what is sent.
    """
    buffer, changed = io.BytesIO(), {_PATH: lambda path: (here, (str(path), os.path.abspath(path)))}
    # A pickler reads this attribute of its class when it is made.
    table = {"dispatch_table": ChainMap(changed, pickler.dispatch_table)}
    writer = type(pickler.__name__, (pickler,), table)(buffer)
    writer.dump(value)
    return buffer.getvalue()


def write_brought(files: Iterable[tuple[str, bytes]]) -> None:
    """Write what came back from a worker, one file after the other, each atomically."""
    for path, content in files:
        write_content(path, content)


# ---------------------------------------------------------------- where a job runs


class Receiver:
    """The files of one worker.

    Args:
        base: folder of this machine for all workers; by default one of the user's below that for temporary files.
        ship: use nothing in place.
    """

    def __init__(self, base: Path | None = None, ship: bool = False) -> None:
        base = base or Path(tempfile.gettempdir(), f"la-reconvla-{os.getuid()}")
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if base.stat().st_uid != os.getuid():
            raise PermissionError(f"{base} is another user's")
        _drop_old(base)
        self._ship, self._objects, self._here = ship, base / "objects", base / f"worker-{uuid.uuid4().hex[:8]}"
        for folder in (self._objects, self._here):
            folder.mkdir(exist_ok=True)
        self._hashes, self._mirrored = Hashes(), dict[str, bool]()

    def lacking(self, manifests: Sequence[Manifest]) -> list[str]:
        """Decide for each folder whether it is used in place; the hashes of files that have to be sent."""
        by_folder: dict[str, list[Manifest]] = {}
        for manifest in manifests:
            if manifest.files:  # nothing says nothing of the disk
                by_folder.setdefault(manifest.folder, []).append(manifest)
        lacking: set[str] = set()
        for folder in sorted(by_folder):  # outer ones first
            outer = self.path(os.path.dirname(folder)) != os.path.dirname(folder)
            there = not (self._ship or outer) and all(map(self._all_there, by_folder[folder]))
            self._mirrored[folder] = not there
            if not there:
                asked = {digest for manifest in by_folder[folder] for _, digest in manifest.files}
                lacking |= {digest for digest in asked if not (self._objects / digest).exists()}
        return sorted(lacking)

    def _all_there(self, manifest: Manifest) -> bool:
        with contextlib.suppress(OSError):
            return all(self._hashes.of(Path(manifest.folder, name)) == digest for name, digest in manifest.files)
        return False

    def place(self, manifests: Iterable[Manifest], contents: Mapping[str, bytes]) -> None:
        """Put the files of folders that are not used in place where `path` says that they are."""
        for digest, content in contents.items():
            if hashlib.sha256(content).hexdigest() != digest:
                raise OSError(f"a file changed on its way: {digest}")
            write_content(self._objects / digest, content)
        for manifest in manifests:
            if self.path(manifest.folder) == manifest.folder:
                continue
            Path(self.path(manifest.folder)).mkdir(parents=True, exist_ok=True)
            for name, digest in manifest.files:
                target = Path(self.path(os.path.join(manifest.folder, name)))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                os.utime(self._objects / digest)
                if manifest.written:  # the job may go on with it: not the file that others read
                    shutil.copyfile(self._objects / digest, target)
                else:
                    os.link(self._objects / digest, target)

    def path(self, path: str) -> str:
        """Where a file or folder is here."""
        folder = path
        while folder not in self._mirrored:
            if (parent := os.path.dirname(folder)) == folder:
                return path
            folder = parent
        return f"{self._here}{path}" if self._mirrored[folder] else path

    def brought(self, manifests: Sequence[Manifest], writes: Sequence[Files]) -> list[tuple[str, bytes]]:
        """What a job wrote into folders that are not used in place: (path there, content), the last written last."""
        found: list[tuple[int, str, bytes]] = []
        for manifest, files in zip((m for m in manifests if m.written), writes, strict=True):
            if self.path(manifest.folder) == manifest.folder:
                continue
            before, folder = dict(manifest.files), Path(self.path(manifest.folder))
            for name in Files(folder, files.names).there():
                if Path(name).parts[0] in files.without or self._hashes.of(folder / name) == before.get(name):
                    continue
                path = folder / name
                found.append((path.stat().st_mtime_ns, os.path.join(manifest.folder, name), path.read_bytes()))
        return [(path, content) for _, path, content in sorted(found)]

    def clear(self, writes: Iterable[Files]) -> None:
        """Forget what a job wrote into folders that are not used in place."""
        for files in writes:
            there = os.path.abspath(files.folder)
            if (folder := self.path(there)) == there:
                continue
            if files.names is None:
                shutil.rmtree(folder, ignore_errors=True)
            for name in files.names or ():
                Path(folder, name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove this worker's folder."""
        shutil.rmtree(self._here, ignore_errors=True)


def _drop_old(base: Path) -> None:
    """Remove what no worker has used for long: of those that were killed, too."""
    for path in (*base.glob("objects/*"), *base.glob("worker-*")):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


receiver: Receiver | None = None
"""That of this process; None where nothing was sent."""


def here(path: str, absolute: str) -> Path:
    """The path that was `path` in the process that sent it; relative where that means the same."""
    found = absolute if receiver is None else receiver.path(absolute)
    return Path(path if receiver is None or found == os.path.abspath(path) else found)
