"""Worker processes that leave Ctrl-C to their parent and do not outlive it; and what a process keeps of its memory."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from la_reconvla import kinds, leases
from la_reconvla.errors import UserError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def become_worker() -> None:
    """Call first in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextlib.contextmanager
def worker_pool(
    workers: int,
    initializer: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
    patient: Callable[[], bool] = lambda: False,
) -> Iterator[ProcessPoolExecutor]:
    """Spawned workers (a forked OpenGL context does not work) for jobs that may be cut off at any time.

    On an error or Ctrl-C the running jobs are ended, not waited for; the processes are gone when this returns.

    Args:
        workers: how many processes.
        initializer: called in each of them.
        arguments: its arguments.
        patient: asked on an error or Ctrl-C: whether the running jobs are waited for after all.
    """
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    registered = [kind for kind in kinds.REGISTERED.values() if kind.__module__ != "__main__"]  # a script runs again
    given = initializer, arguments, registered, leases.held()
    with ProcessPoolExecutor(workers, context, _start, given) as pool:
        try:
            yield pool
        except BaseException:
            if not patient():
                for child in set(multiprocessing.active_children()) - others:
                    child.terminate()
            pool.shutdown(cancel_futures=True)  # the pool's thread waits for them; a second waiter would race with it
            raise


@contextlib.contextmanager
def explain_death(kind: str, running: Callable[[], Sequence[str]] = tuple) -> Iterator[None]:
    """Explains the death of a worker; `kind` names their work, and `running` the jobs that they are at.

    Raises:
        UserError: a worker was ended from outside.
    """
    try:
        yield
    except BrokenProcessPool as error:
        at = f" at {' or '.join(names)}" if (names := running()) else ""
        raise UserError(
            f"a {kind} process died{at}, most likely for lack of memory; what was finished is kept: run the same "
            "command again with fewer --workers (or --devices)"
        ) from error


def _start(
    initializer: Callable[..., None] | None,
    arguments: tuple[Any, ...],
    registered: list[type],
    held: list[leases.Lease],
) -> None:
    become_worker()
    leases.inherit(held)
    for kind in registered:
        kinds.register(kind)
    if initializer is not None:
        initializer(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def keep_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc; with another, nothing happens.

    A training step on a CPU makes and drops the same large tensors again and again. By default glibc hands them back to
    the system, which then empties and maps each page anew: 2300 page faults per step of `quick`, now 30, and 6 to
    9 % of the time.
    """
    with contextlib.suppress(OSError, AttributeError):  # no such library, or one without this function
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
