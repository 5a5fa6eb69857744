"""Files that survive a kill: atomic writes, JSON, JSON lines, free space, and one worker a folder.

A reader sees the old file or the new one, never half of one. A full disk is a `UserError`, and the old file stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from la_reconvla import leases
from la_reconvla.errors import UserError
from la_reconvla.leases import TEMPORARY

FOREIGN = 3600.0  # seconds after which a temporary file of another machine counts as left behind, clocks apart or not
PATIENCE = 1.0  # seconds between looks at a folder that is waited for
UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)
"""How mounted file systems (Google Drive in Colab) say that they cannot flush."""


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Write a file completely or not at all.

    The body writes to the path that it is given (same folder, same suffix); on leaving, the file is flushed to the
    disk and renamed to `path`. When the body fails, the unfinished file is removed and `path` is untouched.

    Args:
        path: the file to write; its folder is made if it is missing.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(leases.temporary(path.name))
        try:
            yield temporary
            _flush_to_disk(temporary)
            leases.require(path)
            os.replace(temporary, path)
            _flush_to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_content(path: Path | str, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, atomically. Errors as in `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Dataclasses, paths, numpy scalars and arrays are written as what they mean; NaN and infinity, which JSON does not
    have, as null.
    """
    write_content(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not JSON.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the folder's name, or run the step that writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); see to its permissions and its disk") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it, and run the step that writes it or download it again"
        ) from None


def parse_json(text: str | bytes) -> Any:
    """What JSON says, from a file that may be damaged.

    Raises:
        ValueError: it is none, or is nested deeper than Python's parser can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def claim(
    path: Path | str,
    identity: Mapping[str, Any],
    with_defaults: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
    /,
    **once: Any,
) -> dict[str, Any]:
    """Claim a folder for this run by writing its identity, or check that the file there has the same.

    Args:
        path: the file that describes the folder.
        identity: what decides the results; names and values, also nested.
        with_defaults: gives the file the defaults of names that are newer, see `la_reconvla.kinds.with_defaults`.
        **once: what is written beside it the first time and compared never.

    Returns:
        The content of the file.

    Raises:
        UserError: if the folder holds a run of another configuration; the differing names are listed.
    """
    path, mine = Path(path), json.loads(json.dumps(plain(identity)))
    if not path.exists():
        write_json(path, {**mine, **once})
    theirs = read_json(path)
    if found := list(differing(mine, with_defaults(theirs) if isinstance(theirs, dict) else theirs)):
        listed = ", ".join(found[:6]) + (", ..." if len(found) > 6 else "")
        raise UserError(
            f"{path.parent} holds a run of another configuration (different: {listed}): "
            "choose another folder or delete that one"
        )
    return theirs


def differing(mine: Mapping[str, Any], theirs: Any) -> Iterator[str]:
    """The names in `mine`, also nested ones, whose values `theirs` lacks or has otherwise; short values beside them."""
    theirs = theirs if isinstance(theirs, dict) else {}
    for key, value in mine.items():
        before = theirs.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from (f"{key}.{name}" for name in differing(value, before))
        elif key not in theirs or before != value:
            simple = all(isinstance(v, str | int | float | bool | None) for v in (value, before))
            yield f"{key}: {before}, now {value}" if simple and len(f"{before}{value}") < 60 else key


def append_jsonl(path: Path | str, *records: Any) -> None:
    """Append one line a record; when this returns they are on the disk.

    A line without its newline is what a kill left of an unfinished record: it is cut off first, as `read_jsonl` does
    not count it either.
    """
    path = Path(path)
    lines = "".join(json.dumps(plain(record), ensure_ascii=False) + "\n" for record in records)
    leases.require(path)
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.truncate(_end_of_last_line(file))
            file.write(lines.encode())
            file.flush()
            _sync(file.fileno())


def read_jsonl(path: Path | str) -> list[Any]:
    """All finished records of a JSON lines file, none if there is no file; a torn last line does not count.

    Raises:
        UserError: it cannot be read, or a line other than the last is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); see to its permissions and its disk") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_json(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}); remove that line") from None
    return records


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file's bytes in hexadecimal digits; raises an `OSError` if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def require_free_space(path: Path | str, size: int) -> None:
    """Make sure that `size` bytes fit on the disk that holds `path` (which need not exist yet).

    Raises:
        UserError: they do not.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{path}: about {size / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; "
            "free some space, ask for less, or choose a folder on another disk"
        )


@contextlib.contextmanager
def locked(folder: Path | str, wait: bool = False, keep: bool = True) -> Iterator[leases.Lease]:
    """Hold `folder` for this process, also against other machines; it is free when the process ends, however that ends.

    What killed writers left unfinished anywhere below is deleted, but for the folders below that others hold.

    Args:
        folder: which; made if it is missing.
        wait: for another process that holds it, which is said on standard error.
        keep: the lease file, see `la_reconvla.leases.lease`.

    Raises:
        UserError: another process holds it, it is a file, or it cannot be written to.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            taken = stack.enter_context(_waited_for(folder) if wait else leases.lease(folder, keep))
            _clear(folder)
        yield taken


@contextlib.contextmanager
def _waited_for(folder: Path) -> Iterator[leases.Lease]:
    said = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                taken = stack.enter_context(leases.lease(folder))
                break
            except leases.Held as held:
                if not said:
                    print(f"{folder}: waiting for {held.owner or 'another process'}", file=sys.stderr)
                said = True
                time.sleep(PATIENCE)
        yield taken


def _clear(folder: Path) -> None:
    """Delete the temporary files below that nobody will finish."""
    for where, folders, names in os.walk(folder):
        here = Path(where)
        if here != folder and leases.holder(here) is not None:
            folders.clear()
            continue
        for name in names:
            if name.startswith(".tmp") and _forsaken(here / name):  # safetensors has its own, without our dash
                (here / name).unlink(missing_ok=True)
        for name in [one for one in folders if one.startswith(TEMPORARY) and _forsaken(here / one)]:
            shutil.rmtree(here / name, ignore_errors=True)
            folders.remove(name)


def _forsaken(path: Path) -> bool:
    """Whether the process that a temporary file names has ended; one that names none is of a process of before."""
    machine, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
    process = rest.partition("-")[0]
    if not (path.name.startswith(TEMPORARY) and len(machine) == 8 and process.isdigit() and "-" in rest):
        return True
    with contextlib.suppress(FileNotFoundError):
        changed = path.stat().st_mtime
        if machine == leases.this_machine():
            began = leases.began(int(process))
            return began is None or began > changed + leases.SAME_START
        return time.time() - changed > FOREIGN
    return False


def why_unreadable(error: Exception, remedy: str) -> str:
    """What is wrong with a file, and what helps: a whole one that cannot be read now need not be downloaded again.

    Args:
        error: what reading it raised.
        remedy: what helps where it is damaged.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM):
        return "you may not read it; ask its owner, or change the permissions (chmod) of the file and its folders"
    if isinstance(error, MemoryError):
        return f"what it says that it holds does not fit in memory ({error}); free some, or {remedy}"
    if number in errno.errorcode:
        return f"cannot be read ({error}); see to the disk or the connection to it, the file itself may be whole"
    return f"truncated or damaged ({error}); {remedy}"


@contextlib.contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Around what writes to `path`; all other errors pass.

    Raises:
        UserError: the disk is full, `path` cannot be written to, or a file is where a folder should be.
    """
    try:
        yield
    except Exception as error:  # h5py and safetensors report a full disk as errors of their own, with the same words
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            raise UserError(
                f"{path}: the disk is full; nothing was overwritten. Free some space and run the same command again"
            ) from error
        if isinstance(error, (PermissionError, IsADirectoryError)) or getattr(error, "errno", None) == errno.EROFS:
            raise UserError(f"{path}: cannot be written ({error}); choose another folder") from error
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            raise UserError(
                f"{path}: a file is in the way ({error}); choose another folder, or move that file"
            ) from error
        raise


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Flush to the disk where the file system can; where it cannot, it decides itself when."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _end_of_last_line(file: Any, block: int = 1 << 16) -> int:
    """Offset just after the last newline of a binary file, 0 if it has none."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def plain(value: Any) -> Any:
    """`value` in the types that JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
