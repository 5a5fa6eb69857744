"""Jobs in spawned processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from la_reconvla.execution.jobs import Job, Needs, raised_in
from la_reconvla.processes import explain_death, worker_pool
from la_reconvla.progress import Bar, Ticker


class Local:
    """Processes of this machine, one a setup; see `la_reconvla.execution.jobs.Executor`. Files are where they are."""

    workers = None

    def ticker(self, bar: Bar) -> Ticker | None:
        """A pipe to this process."""
        return bar.ticker(multiprocessing.get_context("spawn"))

    def map(
        self,
        jobs: Iterable[Job | None],
        setups: Sequence[Job],
        needs: Needs,
        kind: str,
        *,
        queued: int = 0,
        begun: Callable[[Job, str], None] | None = None,
    ) -> Generator[tuple[Job, Any]]:
        """See `Executor.map`. What `needs` asks for is for the caller to see to: workers are as many as setups."""
        running: dict[Future[Any], tuple[Job, _Pool]] = {}
        alike = all(setup is setups[0] for setup in setups)
        groups = [(setups[0], len(setups), queued)] if alike else [(setup, 1, 0) for setup in setups]

        def patient() -> bool:
            return bool(running) and all(job.patient for job, _ in running.values())

        def at() -> list[str]:
            return [job.name for job, _ in running.values()][: len(setups)]  # the first are begun first

        with contextlib.ExitStack() as pools:
            free: list[_Pool] = []
            for setup, workers, more in groups:
                pool = pools.enter_context(worker_pool(workers, setup.call, setup.arguments, patient))
                free += [_Pool(setup.name, pool)] * (workers + more)
            waiting = iter(jobs)
            while True:
                with explain_death(kind, at):
                    while free and (job := next(waiting, None)) is not None:
                        pool = free.pop(0)
                        running[pool.submit(job)] = job, pool
                        if begun is not None:
                            begun(job, pool.name)
                if not running:
                    return
                ended = wait(running, return_when=FIRST_COMPLETED).done
                for future in sorted(ended, key=lambda future: future.exception() is not None):  # what is done is kept
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        with explain_death(kind, at):
                            raise error
                    job, pool = running.pop(future)
                    free.append(pool)
                    if error is not None:
                        raise raised_in(job, error) from error
                    yield job, future.result()


class _Pool:
    """Processes with one setup."""

    def __init__(self, name: str, pool: ProcessPoolExecutor) -> None:
        self.name, self._pool = name, pool

    def submit(self, job: Job) -> Future[Any]:
        return self._pool.submit(job.call, *job.arguments)
