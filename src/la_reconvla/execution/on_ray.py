"""Jobs on a cluster that Ray holds together: workers keep what they have loaded; those of lost nodes are replaced."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from la_reconvla import kinds, leases
from la_reconvla.errors import UserError, install_command
from la_reconvla.execution.current import using
from la_reconvla.execution.jobs import Job, Needs, raised_in
from la_reconvla.execution.ray_head import Disconnected, Head, alive, in_time, require_answer, watched
from la_reconvla.execution.ray_worker import Outcome, RayWorker, installed
from la_reconvla.execution.shipping import Sender, sealed, write_brought
from la_reconvla.progress import Bar, Ticker

START = 180.0  # seconds to wait for a first worker to begin
DEATHS = 2  # of its workers that a job survives
FORWARDED = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "HF_HUB_OFFLINE")


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Let the jobs of the body run on a cluster; with None, where they would run anyhow.

    Args:
        address: ``auto`` for the one that this machine belongs to, ``ray://host:10001`` for one elsewhere.

    Raises:
        UserError: Ray is not installed, nothing answers there, or the head was lost in between.
    """
    if address is None:
        yield
        return
    ray = _import_ray()
    if address != "auto" and not address.startswith("ray://"):
        raise UserError(f"--cluster {address}: give auto, or the address of a cluster's head, ray://HOST:10001")
    if address != "auto":
        require_answer(address)
    try:
        with in_time(address):
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        how = (
            "on its first machine `ray start --head`, on the others `ray start --address=HOST:6379`"
            if address == "auto"
            else "its head needs `ray start --head --ray-client-server-port=10001`, with this Python and Ray"
        )
        raise UserError(
            f"--cluster {address}: no cluster of Ray answers ({_reason(error).split('. ')[0]}); {how}"
        ) from error
    connected = True
    try:
        head = Head.connected(None if address == "auto" else address)
        with watched(head.address), using(Ray(head)):
            yield
    except ConnectionError as error:  # what a client gets; others may come from elsewhere
        if address == "auto" or isinstance(error, BrokenPipeError):
            raise
        connected = False
        raise Disconnected(f"the cluster, {address}, no longer answers") from error
    except Disconnected:
        connected = False  # Ray would end this process, before it has said why
        raise
    finally:
        if connected:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--cluster needs Ray: {install_command('cluster')}") from error
    return ray


def _reason(error: BaseException) -> str:
    """The line of an error of Ray that says why; it ends with that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]


@dataclass(eq=False)
class _Worker:
    """One worker as this process sees it.

    Attributes:
        setup: what it begins with.
        number: of all that were started.
        actor: Ray's handle.
        host: its machine; empty until it has begun.
        job: what it is at; None for its setup.
        ready: its setup is done.
        then: what to do with its next answer.
    """

    setup: Job
    number: int
    actor: Any
    host: str = ""
    job: Job | None = None
    ready: bool = False
    then: Callable[[_Worker, Any], None] | None = None


class Ray:
    """A cluster that this process is connected to; see `la_reconvla.execution.jobs.Executor`.

    Args:
        head: asked now and then whether it answers; None for that of a connection without a client.
        ship: use no file in place, as if no machine had this disk.
        start: seconds to wait for a first worker.
    """

    def __init__(self, head: Head | None = None, *, ship: bool = False, start: float = START) -> None:
        self._head, self._ship, self._start = head or Head.connected(), ship, start

    @property
    def workers(self) -> int:
        """Cores of all nodes."""
        self._head.require()
        return max(1, int(sum(node["Resources"].get("CPU", 0) for node in alive())))

    def ticker(self, bar: Bar) -> Ticker | None:
        """Jobs report nothing before they end."""
        return None

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
        """See `Executor.map`. Workers are at most as many as the nodes have room for; `queued` changes nothing.

        The job of a worker that died is given to another one, up to `DEATHS` times.

        Raises:
            UserError: also if no node has what is asked for, if nodes differ in what is installed, if no worker begins
                in time, a job ended several workers, or the head was lost.
        """
        self._head.require()
        resources, room = _fitted(needs, len(setups), kind)
        crew = _Crew(self._head, self._ship, self._start, resources, kind, begun, room)
        try:
            for setup in setups[:room]:
                crew.hire(setup)
            yield from crew.work(iter(jobs))
        except Disconnected:
            crew.workers.clear()  # Ray would wait for an answer, or end this process; they end without it
            crew.idle.clear()
            raise
        finally:
            crew.close()


def _fitted(needs: Needs, workers: int, kind: str) -> tuple[dict[str, float], int]:
    """What Ray is asked for each worker, and how many of them the nodes have room for, at most `workers`.

    Raises:
        UserError: there is no node with room for one.
    """
    nodes = [node["Resources"] for node in alive()]
    gpus = sum(node.get("GPU", 0) for node in nodes)
    share = min(1.0, int(100 * gpus / workers) / 100) if needs.gpus == "share" else float(needs.gpus)
    if needs.gpus == "share" and not gpus:
        share = 1.0
    asked = {"CPU": float(needs.cpus), "GPU": share, "memory": float(needs.memory)}
    asked = {name: amount for name, amount in asked.items() if amount}
    room = sum(int(min(node.get(name, 0) / amount for name, amount in asked.items()) + 1e-9) for node in nodes)
    if not room:

        def said(amounts: dict[str, float]) -> str:
            memory = f"{amounts.get('memory', 0) / 1e9:.1f} GB"
            return f"{amounts.get('CPU', 0):g} CPUs, {amounts.get('GPU', 0):g} GPUs, {memory}"

        has = "; ".join(said(node) for node in nodes) or "none is alive"
        raise UserError(
            f"a worker for {kind} needs {said(asked)}, and no node of the cluster has that ({has}): start a node that "
            "has, or ask for less (--device cpu)"
        )
    return asked, min(workers, room)


@dataclass(eq=False)
class _Crew:
    """The workers of one `Ray.map`, and what they are at.

    Attributes:
        head: see `Ray`.
        ship: see `Ray`.
        start: see `Ray`.
        resources: what Ray is asked for each.
        kind: of their work.
        begun: see `Executor.map`.
        most: how many workers there are to be.
    """

    head: Head
    ship: bool
    start: float
    resources: dict[str, float]
    kind: str
    begun: Callable[[Job, str], None] | None
    most: int
    workers: dict[Any, _Worker] = field(default_factory=dict)
    idle: list[_Worker] = field(default_factory=list)
    sender: Sender = field(default_factory=Sender)
    sent: dict[str, Any] = field(default_factory=dict)
    again: deque[Job] = field(default_factory=deque)
    deaths: dict[Job, int] = field(default_factory=dict)
    unset: int = 0  # workers that died before they had begun, since one last did
    hired: int = 0
    results: list[tuple[Job, Any]] = field(default_factory=list)

    def hire(self, setup: Job) -> None:
        """Start a worker; it begins when a node has room for it."""
        import ray

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Ray would set the first to the cores that were asked for, and sums in other threads have other bits.
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(cores)}
        variables |= {name: os.environ[name] for name in FORWARDED if name in os.environ}
        options: dict[str, Any] = {
            "num_cpus": self.resources.get("CPU", 0),
            "num_gpus": self.resources.get("GPU", 0),
            "memory": self.resources.get("memory", 0),
            "runtime_env": {"env_vars": variables},
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
        }
        actor: Any = ray.remote(RayWorker)  # the type checker takes it for a function
        actor = actor.options(**options).remote(self.hired, self.ship)
        worker = _Worker(setup, self.hired, actor)
        self.hired += 1
        self._ask(worker, actor.where.remote(), self._arrived)

    def _ask(self, worker: _Worker, ref: Any, then: Callable[[_Worker, Any], None]) -> None:
        worker.then = then
        self.workers[ref] = worker

    def work(self, jobs: Iterator[Job | None]) -> Iterator[tuple[Job, Any]]:
        """All jobs, and those that are added to `again`."""
        import ray
        from ray.exceptions import RayError

        waited = time.monotonic()
        while True:
            self.head.require()
            while self.idle and (job := self.again.popleft() if self.again else next(jobs, None)) is not None:
                self._give(self.idle.pop(0), job)
                if self.begun is not None and not self.deaths.get(job):
                    self.begun(job, self._at(job).setup.name)
            busy = [worker for worker in self.workers.values() if worker.job is not None]
            if self.idle and not busy:
                return
            if any(worker.host for worker in self.workers.values()) or self.idle:
                waited = time.monotonic()
            elif time.monotonic() - waited > self.start:
                raise UserError(
                    f"no worker for {self.kind} has begun in {self.start:.0f} s, though the cluster has nodes with "
                    "room for one: others use them (see `ray status`). What was finished is kept: run "
                    "the same command again"
                )
            for ref in ray.wait(list(self.workers), num_returns=1, timeout=1.0)[0]:
                worker = self.workers.pop(ref)
                assert worker.then is not None
                try:
                    answer = ray.get(ref)
                except RayError as error:
                    self._died(worker, error)
                else:
                    worker.then(worker, answer)
            yield from self.results
            self.results.clear()

    def _at(self, job: Job) -> _Worker:
        return next(worker for worker in self.workers.values() if worker.job is job)

    def _arrived(self, worker: _Worker, answer: tuple[str, dict[str, str]]) -> None:
        """It has begun, on a node."""
        worker.host, theirs = answer
        if differing := [
            f"{name} {theirs.get(name)} there, {installed().get(name)} here"
            for name in sorted({*theirs, *installed()})
            if theirs.get(name) != installed().get(name)
        ]:
            raise UserError(
                f"{worker.host} has other versions: {'; '.join(differing)}. Results would depend on the machine: "
                "install the same on all nodes, and start Ray there again"
            )
        self._give(worker, None)

    def _give(self, worker: _Worker, job: Job | None) -> None:
        """Give it a job, or its setup: first it says which files it lacks."""
        worker.job, given = job, job or worker.setup
        manifests = self.sender.manifests(given)

        def send(worker: _Worker, lacking: Sequence[str]) -> None:
            import ray

            for digest in lacking:
                if digest not in self.sent:
                    self.sent[digest] = ray.put(self.sender.content(digest))
            registered = [k for k in kinds.REGISTERED.values() if k.__module__ != "__main__"]
            pickler = vars(ray)["cloudpickle"].CloudPickler  # lambdas and classes of a script, too
            message = sealed(pickler, (_call, (registered, given.call, given.arguments)))
            contents = {digest: self.sent[digest] for digest in lacking}
            self._ask(
                worker, worker.actor.run.remote(message, manifests, given.writes, contents, leases.held()), self._done
            )

        if manifests:
            self._ask(worker, worker.actor.lacking.remote(manifests), send)
        else:
            send(worker, ())

    def _done(self, worker: _Worker, outcome: Outcome) -> None:
        """A job, or a setup, has ended."""
        given = worker.job or worker.setup
        if isinstance(outcome.error, BaseException):
            raise raised_in(given, outcome.error)
        if outcome.error is not None:
            raise UserError(f"{given.name} failed in its worker on {worker.host}: {outcome.error}; please report it")
        self.unset = 0
        write_brought(outcome.files)
        if worker.job is not None:
            self.results.append((worker.job, outcome.value))
        self._rests(worker, None)

    def _rests(self, worker: _Worker, answer: object) -> None:
        """It may get a job."""
        worker.job, worker.ready = None, True
        self.idle.append(worker)

    def _died(self, worker: _Worker, error: BaseException) -> None:
        """Its process or node is gone: another worker does its job."""
        kept = "What was finished is kept: run the same command again"
        if worker.job is not None:
            self.deaths[worker.job] = self.deaths.get(worker.job, 0) + 1
            if self.deaths[worker.job] > DEATHS:
                raise UserError(
                    f"{worker.job.name} ended {self.deaths[worker.job]} workers, the last on {worker.host}, most "
                    f"likely for lack of memory ({_reason(error)}). {kept}, with fewer --workers"
                ) from error
            self.again.append(worker.job)
        elif not worker.ready:
            self.unset += 1
            if self.unset > DEATHS * self.most:
                raise UserError(
                    f"workers for {self.kind} die before they begin, the last on {worker.host or 'an unknown node'} "
                    f"({_reason(error)}). {kept}"
                ) from error
        self.hire(worker.setup)
        for other in self.idle:  # its node may have gone with it: no job is given to the dead
            self._ask(other, other.actor.lacking.remote(()), self._rests)
        self.idle.clear()

    def close(self) -> None:
        """End all workers."""
        import ray

        everyone = [*self.workers.values(), *self.idle]
        if self.idle:
            with contextlib.suppress(Exception):
                ray.wait([worker.actor.close.remote() for worker in self.idle], timeout=5)
        for worker in everyone:
            with contextlib.suppress(Exception):
                ray.kill(worker.actor)
        self.sender.close()


def _call(registered: Sequence[type], call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """In a worker: a call that knows the classes that were registered where it came from."""
    for kind in registered:
        kinds.register(kind)
    return call(*arguments)
