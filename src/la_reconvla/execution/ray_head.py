"""The head of a cluster of Ray: whether it answers, at first and while the cluster works."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

from la_reconvla.errors import UserError

REACH = 10.0  # seconds to wait for one answer
SILENT = 20.0  # seconds without one, after which the head counts as lost: Ray itself ends the process after 60
BETWEEN = 2.0  # seconds from one question to the next


class HeadLost(UserError):
    """The head has ended, or its machine or the network: nothing can be asked of Ray any more, not even to stop.

    Args:
        address: where it was.
    """

    def __init__(self, address: str) -> None:
        super().__init__(
            f"the head of the cluster, {address}, no longer answers. What was finished is kept: start the cluster "
            "again, and run the same command again"
        )


class Head:
    """The head that this process is connected to.

    Args:
        address: host:port of its GCS, or of its server for clients.
        silent: seconds without an answer after which it counts as lost.
    """

    def __init__(self, address: str, silent: float = SILENT) -> None:
        self._address, self._silent, self._asked = address, silent, -BETWEEN

    def require(self) -> None:
        """Wait until it answers. Ray's calls would wait too, and then end the process without a word of ours.

        Raises:
            HeadLost: it is silent for too long.
        """
        begun = time.monotonic()
        if begun - self._asked < BETWEEN:
            return
        while True:
            try:
                reach(self._address)
            except OSError as error:
                if time.monotonic() - begun > self._silent:
                    raise HeadLost(self._address) from error
                time.sleep(BETWEEN / 4)
            else:
                self._asked = time.monotonic()
                return


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
