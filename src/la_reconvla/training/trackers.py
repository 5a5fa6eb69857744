"""What is measured while training: on disk and, if asked for, at a tracking service."""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from la_reconvla.errors import UserError
from la_reconvla.storage import (
    append_jsonl,
    explain_disk_errors,
    plain,
    read_json,
    read_jsonl,
    write_content,
    write_json,
)
from la_reconvla.training.options import ServiceName

METRICS = "metrics.jsonl"
TRACKED = "tracked.json"
PROJECT = "la-reconvla"


class Tracker(Protocol):
    """Receives what is measured while training."""

    def log(self, values: Mapping[str, Any], step: int) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """``metrics.jsonl``: the truth. Lines after `first`, left by a killed run, are dropped."""

    def __init__(self, folder: Path, first: int):
        self.path = folder / METRICS
        kept = [line for line in read_jsonl(self.path) if first and line["step"] <= first]
        write_content(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Append one line."""
        append_jsonl(self.path, {"step": step, **values})

    def close(self) -> None:
        """Nothing is buffered."""


class TensorBoard:
    """The numbers among the values, for TensorBoard."""

    def __init__(self, folder: Path, first: int):
        self.folder = folder / "tensorboard"
        with explain_disk_errors(self.folder):
            self.board = SummaryWriter(str(self.folder), purge_step=first + 1)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Add each number."""
        with explain_disk_errors(self.folder):
            for name, value in values.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        with explain_disk_errors(self.folder):
            self.board.close()


def require_service(name: ServiceName | None) -> None:
    """Raise a `UserError` if the package of a tracking service is missing, while nothing is written yet."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise UserError(f"--track {name} needs another package (in the checkout: pip install -e '.[{name}]')")


class Service:
    """A run at Weights & Biases or Trackio, through accelerate: the content of ``metrics.jsonl``.

    ``tracked.json`` keeps the run's name there, so that a training that is resumed goes on in it, and the last step
    that it has. What is trained again after a kill gives the same numbers, and is not sent twice.

    Args:
        name: of the service.
        folder: run folder. Its ``metrics.jsonl`` must still hold what a killed run logged.
        described: what the service shows as the run's configuration, with its ``condition`` and ``seed``.

    Raises:
        UserError: if the package is missing, or the service starts no run.
    """

    def __init__(self, name: ServiceName, folder: Path, described: Mapping[str, Any]):
        require_service(name)
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        path, logged = folder / TRACKED, read_jsonl(folder / METRICS)
        known = read_json(path) if path.exists() else {}
        run = known.get(name, {"id": uuid.uuid4().hex[:8], "step": -1})
        self.step = run["step"]
        arm = f"{described['condition']}/seed{described['seed']}"  # of the folder no more than its name leaves here
        label = f"{arm}/{folder.resolve().name}/{run['id']}"  # Trackio knows a run by it
        options = {"wandb": {"id": run["id"], "dir": str(folder)}, "trackio": {}}[name]
        try:
            PartialState()  # its trackers say on their own which process speaks
            self.run = LOGGER_TYPE_TO_CLASS[name](PROJECT, name=label, resume="allow", **options)
            self.run.start()
            self.run.store_init_configuration(plain(described))
        except Exception as error:  # each service has classes of its own
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"{name} starts no run ({first}): log in to it, or leave --track out") from error
        if name in known:
            self.step = max([self.step, *(line["step"] for line in logged)])
        else:  # what was logged before anybody tracked
            for line in logged:
                self.log({key: value for key, value in line.items() if key != "step"}, line["step"])
        write_json(path, {**known, name: {"id": run["id"], "step": self.step}})

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send one line."""
        if step > self.step:
            self.run.log(plain(values), step=step)
            self.step = step

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()
