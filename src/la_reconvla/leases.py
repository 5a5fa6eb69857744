"""Who works in a folder: one small file there, a lease, that also holds where several machines share the disk.

A lease file names host, process and a number of its own; its modification time is the heartbeat, set every `BEAT`
seconds. Both that time and "now" are read from files on the shared disk, so that the machines' clocks do not matter.
Lease files are numbered, and the highest number holds: to take a folder is to create the next number, which of all
processes one can do. That is allowed where the highest was given back, where its process has died on this machine, or
where its heart has not beaten for `STALE` seconds. Who was overtaken finds a higher number and writes no more
(`require`, which `la_reconvla.storage` calls before each write). A file that was given back stays: numbers only grow.
Folders that people commit are the exception (`lease`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from la_reconvla.errors import UserError

PREFIX = ".lease-"
TEMPORARY = ".tmp-"
"""Prefix of unfinished files; machine and process of who writes them follow. Nothing reads them."""
BEAT = 20.0  # seconds
STALE = 180.0  # of silence; clients of NFS may see times that are a minute old
SAME_START = 2.0  # seconds by which two readings of when a process began may differ


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        host: its machine's name, for people.
        machine: 8 hexadecimal digits of name, boot and process namespace: where process numbers mean the same.
        process: its number there.
        began: when it began, seconds of that machine's clock; a later process may get its number.
    """

    host: str
    machine: str
    process: int
    began: float

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        return cls(platform.node(), this_machine(), os.getpid(), began(os.getpid()) or 0.0)

    @property
    def dead(self) -> bool | None:
        """Whether it has ended; None on another machine, where nobody can tell."""
        if self.machine != this_machine():
            return None
        now = began(self.process)
        return now is None or abs(now - self.began) > SAME_START

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Held(UserError):
    """Another process works there.

    Attributes:
        folder: where.
        owner: that process; None if its file cannot be read.
    """

    def __init__(self, folder: Path, owner: Owner | None):
        self.folder, self.owner = folder, owner
        far = owner is None or owner.machine != this_machine()
        free = f"; if it has died, the folder is free {STALE:.0f} seconds after its last sign of life" if far else ""
        super().__init__(
            f"{folder}: another process is working in this folder ({owner or 'unknown'}); wait for it or end it{free}"
        )


@dataclass(eq=False)
class Lease:
    """The right to work in a folder, until `release`.

    Attributes:
        folder: which.
        number: of its file.
        id: its own.
        below: other folders that go with it: what is written there is guarded too.
    """

    folder: Path
    number: int
    id: str
    owner: Owner
    below: list[Path] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Its file."""
        return _path(self.folder, self.number)

    def held(self) -> bool:
        """Whether nobody has overtaken it."""
        return _highest(self.folder) == self.number and _content(self.path).get("id") == self.id

    def require(self) -> None:
        """Raise a `UserError` if another process has taken the folder."""
        if not self.held():
            raise UserError(
                f"{self.folder} is no longer held by this process: it was silent for {STALE:.0f} seconds, and another "
                "one has taken over, or the folder was deleted. Nothing more is written there; run the command again"
            )

    def guards(self, path: str) -> bool:
        """Whether an absolute path is in its folder or one that goes with it."""
        return any(path.startswith(f"{os.path.abspath(folder)}{os.sep}") for folder in (self.folder, *self.below))

    def keep(self, ended: threading.Event) -> None:
        """Beat until `ended`, or until it is lost."""
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                if not self.held():
                    return
                touch(self.path)


_held: list[Lease] = []


@contextlib.contextmanager
def lease(folder: Path, keep: bool = True) -> Iterator[Lease]:
    """Take a folder, which exists, and give it back at the end.

    Args:
        folder: which.
        keep: the lease file. Without it numbers begin anew, and a process that looked long ago may overtake one that
            works; that one then refuses to write. For short work, every file of which is written at once.

    Raises:
        Held: another process works there.
        OSError: the disk.
    """
    taken, ended = take(folder), threading.Event()
    beating = threading.Thread(target=taken.keep, args=(ended,), daemon=True)
    _held.append(taken)
    beating.start()
    try:
        yield taken
    finally:
        _held.remove(taken)
        ended.set()
        release(taken, keep)


def take(folder: Path, owner: Owner | None = None) -> Lease:
    """See `lease`; without heartbeat."""
    mine = Lease(folder, -1, uuid.uuid4().hex, owner or Owner.me())
    draft = folder / temporary("lease")
    try:
        while True:
            draft.write_bytes(json.dumps({"id": mine.id, **asdict(mine.owner)}).encode())
            last = _highest(folder)
            if last >= 0 and (found := _living(_path(folder, last), draft)) is not None:
                if not _path(folder, last).exists():
                    continue  # given back just now, or overtaken
                raise Held(folder, _owner(found))
            mine.number = last + 1
            if not _create(draft, mine):
                continue  # another was faster
            if _highest(folder) != mine.number:  # what was listed is long ago: others have come and gone since
                mine.path.unlink(missing_ok=True)
                continue
            for number in _numbers(folder):
                if number < mine.number:
                    _path(folder, number).unlink(missing_ok=True)
            return mine
    finally:
        draft.unlink(missing_ok=True)


def release(taken: Lease, keep: bool = True) -> None:
    """Give it back, if it is still held; the file stays, and says so, or goes."""
    with contextlib.suppress(OSError):  # the folder may be gone
        if not taken.held():
            return
        if keep:
            draft = taken.folder / temporary("lease")
            draft.write_bytes(json.dumps({"id": taken.id, **asdict(taken.owner), "released": True}).encode())
            os.replace(draft, taken.path)
        else:
            taken.path.unlink()


def holder(folder: Path) -> Owner | None:
    """Who works in a folder, other than this process; None if nobody does, or who it is cannot be read."""
    if (last := _highest(folder)) < 0:
        return None
    draft = folder / temporary("now")
    try:
        draft.touch()
        owner = _owner(_living(_path(folder, last), draft) or {})
    finally:
        draft.unlink(missing_ok=True)
    return None if owner == Owner.me() else owner


def require(path: Path) -> None:
    """Before a write to `path`: see that the folders above it that this process took are still its own.

    Raises:
        UserError: one was lost.
    """
    if _held:
        absolute = os.path.abspath(path)
        for taken in _held:
            if taken.guards(absolute):
                taken.require()


def held() -> list[Lease]:
    """What this process holds, for its workers, which may have another working directory."""
    return [replace(a, folder=a.folder.absolute(), below=[each.absolute() for each in a.below]) for a in _held]


def inherit(taken: Iterable[Lease]) -> None:
    """In a worker: write from now on only as long as these are held where the work comes from."""
    _held[:] = taken


@functools.cache
def this_machine() -> str:
    """See `Owner.machine`."""
    about = [platform.node()]
    with contextlib.suppress(OSError):  # where there is no /proc the name must do
        about += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:8]


def began(process: int) -> float | None:
    """When a process of this machine began, NaN where that is hidden; None if there is none, or a zombie."""
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else found.create_time()
    except psutil.Error:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass  # another user's, which this one may not see
        return math.nan


def temporary(name: str) -> str:
    """A name for an unfinished file, which tells who writes it."""
    return f"{TEMPORARY}{this_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{name}"


def touch(path: Path) -> None:
    """Set a file's modification time to now, by the clock of the disk."""
    os.utime(path)


# ---------------------------------------------------------------- the files


def _path(folder: Path, number: int) -> Path:
    return folder / f"{PREFIX}{number:06d}"


def _numbers(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
    return [int(number) for number in found if len(number) == 6 and number.isdigit()]


def _highest(folder: Path) -> int:
    return max(_numbers(folder), default=-1)


def _content(path: Path) -> dict[str, Any]:
    """Empty for a file that is gone, or that somebody is writing."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _owner(content: dict[str, Any]) -> Owner | None:
    try:
        return Owner(content["host"], content["machine"], int(content["process"]), float(content["began"]))
    except (KeyError, TypeError, ValueError):
        return None


def _living(path: Path, now: Path) -> dict[str, Any] | None:
    """What a lease file says, if its holder still works; `now` is a file that was just written on the same disk."""
    content = _content(path)
    if content.get("released"):
        return None
    owner = _owner(content)
    if owner is not None and owner.dead is not None:
        return None if owner.dead else content
    try:
        return None if now.stat().st_mtime - path.stat().st_mtime > STALE else content
    except FileNotFoundError:
        return content  # it was overtaken just now: look again


def _create(draft: Path, mine: Lease) -> bool:
    """Make the file of a lease, complete and only if there is none; says whether it did."""
    with contextlib.suppress(FileExistsError):
        try:
            os.link(draft, mine.path)
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise
            with mine.path.open("xb") as file:  # a disk without hard links
                file.write(draft.read_bytes())
    return _content(mine.path).get("id") == mine.id  # NFS may call what it did for us a failure
