"""What is measured while training, on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from la_reconvla.storage import append_jsonl, atomic_write, explain_disk_errors, read_jsonl

METRICS = "metrics.jsonl"


class Tracker(Protocol):
    """Receives what is measured while training."""

    def log(self, values: Mapping[str, Any], step: int) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """``metrics.jsonl``: the truth. Lines after `first`, left by a killed run, are dropped."""

    def __init__(self, folder: Path, first: int):
        self.path = folder / METRICS
        kept = [line for line in read_jsonl(self.path) if first and line["step"] <= first]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

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
