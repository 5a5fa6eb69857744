"""Starting the processes that train one policy, and joining them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from la_reconvla.errors import UserError
from la_reconvla.training.devices import pick_device
from la_reconvla.training.options import LaunchOptions
from la_reconvla.training.process_group import ALONE, ProcessGroup, joined


@contextmanager
def processes(options: LaunchOptions, device: str | None) -> Iterator[ProcessGroup]:
    """The processes of this command.

    What no launcher has started becomes the launcher, with the same command line for each of its processes.

    Args:
        options: what the user chose.
        device: of the schedule; None for ``auto``.

    Raises:
        UserError: a launcher started several processes that would each train alone, or as `joined`.
    """
    launched, device = "RANK" in os.environ, device or "auto"
    if options.launch is None:
        if options.processes or options.sharded:
            raise UserError("--processes and --sharded are of several processes: give --launch accelerate too")
        if launched and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "a launcher started several processes, and each would train alone: give --launch accelerate"
            )
        yield ALONE
        return
    if not launched:
        os.execv(sys.executable, [sys.executable, *launcher(options.processes, device), *sys.argv[1:]])
    with joined(device, options.sharded) as group:
        yield group


def launcher(count: int, device: str) -> list[str]:
    """Arguments for Python that start this command in `count` processes, 0 for as many as are configured.

    Raises:
        UserError: on CPUs without a count: Accelerate's own launcher starts one process there.
    """
    if pick_device(device).type != "cpu":
        several = ["--num_processes", str(count)] if count else []
        return ["-m", "accelerate.commands.launch", *several, "-m", "la_reconvla"]
    if not count:
        raise UserError("on CPUs say how many processes there are: --processes 2")
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), "-m", "la_reconvla"]
