"""A study of seconds on the toy, for tests of what surrounds a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kills import TIMES, timeless

from la_reconvla import layout
from la_reconvla.execution import local
from la_reconvla.storage import read_json
from la_reconvla.study import train_cells
from la_reconvla.study.presets import StudyConfig, preset

PICTURES = {"pictures", "videos", "timelines"}


def toy(**changes: Any) -> StudyConfig:
    """A study of seconds: it shows that everything runs, and knows no answer."""
    known = preset("known-answer")
    train = replace(known.train, steps=4, batch_size=8, save_every=4, check_every=2, warmup=1)
    small = {"demos": 12, "episodes": 6, "floor_episodes": 4, "frames": 8, "conditions": ("C2", "G1"), "seeds": (0, 1)}
    return replace(known, train=train, **(small | changes))


def results(study: Path) -> Any:
    """Results but for times, dates, commands and pictures."""
    return timeless(read_json(study / layout.RESULTS), TIMES | PICTURES)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Workers are threads, one each time: starting processes is most of what so small a study takes."""

    def pool(workers: int, initializer: Callable[..., None], arguments: tuple[Any, ...], patient: Any):
        train_cells._read.cache_clear()
        return ThreadPoolExecutor(1, initializer=initializer, initargs=arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(local, "worker_pool", pool)
        yield
