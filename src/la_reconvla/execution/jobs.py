"""Jobs for workers, and the protocol of what runs them: collection, trainings, rollouts and measurements are jobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from la_reconvla.errors import UserError
from la_reconvla.progress import Bar, Ticker


@dataclass(frozen=True)
class Files:
    """Files below one folder. Where a worker does not have this disk they are sent to it, or come back from it.

    Attributes:
        folder: where they are here.
        names: their names below it, also of files that do not exist; None for all but hidden ones.
        without: names of folders that are not brought back.
    """

    folder: Path
    names: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()

    def there(self) -> list[str]:
        """Names of those that exist, sorted."""
        if self.names is not None:
            return [name for name in self.names if (self.folder / name).is_file()]
        found = []
        for place, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [os.path.join(place, name) for name in names if not name.startswith(".")]
        return sorted(os.path.relpath(path, self.folder) for path in found)


@dataclass(frozen=True, eq=False)
class Job:
    """A call in a worker. Repeated after its worker died, it must give the same.

    Attributes:
        name: what it is, for errors.
        call: a function of a module; its arguments are pickled. Paths below the folders of `reads` and `writes` become
            those that hold there.
        arguments: its arguments.
        reads: files that it reads.
        writes: files that it makes, or goes on with. They come back in the order in which they were last written.
        patient: finished when the rest is given up, not cut off.
    """

    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    reads: tuple[Files, ...] = ()
    writes: tuple[Files, ...] = ()
    patient: bool = False


@dataclass(frozen=True)
class Needs:
    """What one worker takes of a machine; a cluster gives no more work to a node than it has room for.

    Attributes:
        cpus: cores.
        gpus: GPUs; ``share`` divides those of the cluster among the workers.
        memory: bytes.
    """

    cpus: int = 1
    gpus: int | str = 0
    memory: int = 1_500_000_000


class Executor(Protocol):
    """Runs jobs in workers."""

    @property
    def workers(self) -> int | None:
        """How many workers there are if nobody says; None where that is for the machine's cores to say."""
        ...

    def ticker(self, bar: Bar) -> Ticker | None:
        """What jobs report progress to; None where they cannot before they end."""
        ...

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
        """Run `jobs`; yields each with its value as it ends, in no fixed order. Closed, it ends the workers.

        Args:
            jobs: drawn one by one, whenever a worker is free. None says that there is none for now: the next is asked
                for after the next result.
            setups: one worker each, which calls it once, before its first job; what is loaded then stays loaded.
            needs: of one worker.
            kind: of the work, in one word, for errors.
            queued: how many more jobs than workers are drawn, so that no worker waits.
            begun: called with each job that is given away and the name of the setup of its worker.

        Raises:
            UserError: a job raised it, or another exception, or its worker died; it names the job.
        """
        ...


def raised_in(job: Job, error: BaseException) -> BaseException:
    """What to raise here for what a job raised there."""
    if isinstance(error, UserError | KeyboardInterrupt):
        return error
    return UserError(f"{job.name} failed in its worker: {error!r}; this is a defect, please report it")


def nothing() -> None:
    """The call of a setup that has nothing to do."""
