"""Whether a cluster of Ray answers, at first and while it works."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from la_reconvla.errors import UserError

REACH = 10.0  # seconds to wait for one answer
SILENT = 20.0  # seconds without one, after which the head counts as lost: Ray itself ends the process after 60
CONNECT = 180.0  # seconds that connecting may take; Ray goes on for many minutes where the head ends meanwhile
BETWEEN = 2.0  # seconds from one question to the next


class Disconnected(UserError):
    """Nothing can be asked of Ray any more, not even to stop.

    Args:
        what: is lost.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. What was finished is kept: start the cluster again there, and run the same command again"
        )


class Head:
    """The head that this process is connected to, and the node by which it is.

    Args:
        address: host:port of its GCS, or of its server for clients.
        node: the ID of the node.
        silent: seconds without an answer after which the head counts as lost.
    """

    def __init__(self, address: str, node: str, silent: float = SILENT) -> None:
        self.address, self._node, self._silent, self._asked = address, node, silent, -BETWEEN

    @classmethod
    def connected(cls, address: str | None = None) -> Head:
        """Those that this process is connected to now; `address` of a client's server, None for the GCS itself."""
        import ray

        context = ray.get_runtime_context()
        return cls(address or context.gcs_address, context.get_node_id())

    def require(self) -> None:
        """Wait until it answers. Ray's calls would wait too, and then end the process without a word of ours.

        Without its node this process gets no more results, and Ray waits for them forever.

        Raises:
            Disconnected: it is silent for too long, or has lost the node.
        """
        begun = time.monotonic()
        if begun - self._asked < BETWEEN:
            return
        while True:
            try:
                reach(self.address)
            except OSError as error:
                if time.monotonic() - begun > self._silent:
                    raise Disconnected(f"the head of the cluster, {self.address}, no longer answers") from error
                time.sleep(BETWEEN / 4)
            else:
                break
        if self._node not in (node["NodeID"] for node in alive()):
            raise Disconnected("the node of Ray on this command's machine has ended")
        self._asked = time.monotonic()


@contextlib.contextmanager
def in_time(address: str, seconds: float = CONNECT) -> Iterator[None]:
    """End this process with a sentence where the body, which connects to a cluster, takes longer.

    Ray catches what would interrupt it there. Nothing of ours has begun: a folder that is held is free again at once.
    """
    late = threading.Timer(seconds, _end, (Disconnected(f"the cluster, {address}, stopped answering"),))
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


@contextlib.contextmanager
def watched(address: str, silent: float = 2 * SILENT) -> Iterator[None]:
    """End this process with a sentence where the head is lost while the body waits for Ray or asks it nothing.

    After 60 seconds Ray would end it, with words about itself. What this process writes survives its end at any time.

    Args:
        address: as of `Head`.
        silent: seconds without an answer; more than those of `Head`, which raises where it is asked.
    """
    over = threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not over.wait(BETWEEN):
            with contextlib.suppress(OSError):
                reach(address)
                heard = time.monotonic()
            if time.monotonic() - heard > silent:
                _end(Disconnected(f"the head of the cluster, {address}, no longer answers"))

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _end(error: Disconnected) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(2)


def alive() -> list[dict[str, Any]]:
    """The nodes of the cluster that live."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def reach(address: str) -> None:
    """Connect to host:port and hang up.

    Raises:
        OSError: nothing answers there.
        ValueError: the port is no number.
    """
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    socket.create_connection((parts.hostname or "", parts.port or 10001), timeout=REACH).close()


def require_answer(address: str) -> None:
    """Raise a `UserError` if nothing listens there; Ray itself would try for minutes."""
    try:
        reach(address)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--cluster {address}: nothing answers there ({error}); see that the head runs, and that this machine may "
            "reach its port"
        ) from error
