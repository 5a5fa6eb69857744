"""A study on a Ray cluster of two nodes gives what it gives in processes of this machine, also when a node is lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kills import content

from la_reconvla.execution.current import using
from la_reconvla.study.ablation import Ablation
from la_reconvla.study.presets import StudyConfig, preset

pytest.importorskip("ray", reason="the extra `cluster` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # its workers start some forty processes

STEPS = 30


def small() -> StudyConfig:
    made = preset("known-answer")
    train = replace(made.train, steps=STEPS, log_every=10, save_every=10, check_every=STEPS)
    few: dict[str, Any] = {"seeds": (0,), "conditions": ("C2", "G1"), "demos": 12, "frames": 8}
    return replace(made, train=train, episodes=3, floor_episodes=1, **few)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("local") / "study"
    Ablation(small(), folder, workers=2).run()
    found = content(folder)
    assert sum(name.endswith("model.safetensors") for name in found) == 3
    return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    from helpers_ray import two_nodes

    with two_nodes() as found:
        yield found


@pytest.mark.parametrize("ship", [False, True], ids=["one disk", "no disk in common"])
def test_two_nodes_give_what_one_machine_gives(nodes: Any, local: dict[str, Any], tmp_path: Path, ship: bool) -> None:
    from la_reconvla.execution.on_ray import Ray

    with using(Ray(ship=ship)):
        Ablation(small(), tmp_path / "study", workers=2).run()
    assert content(tmp_path / "study") == local


def test_the_cells_of_a_lost_node_are_trained_on_the_other(nodes: Any, local: dict[str, Any], tmp_path: Path) -> None:
    """Last in this file: the node is gone."""
    from la_reconvla.execution.on_ray import Ray

    lost = threading.Event()

    def lose() -> None:
        while not any(tmp_path.rglob("metrics.jsonl")):
            time.sleep(0.02)
        with contextlib.suppress(Exception):
            nodes.lose_one()
        lost.set()

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    with using(Ray()):
        Ablation(small(), tmp_path / "study", workers=3).run()
    assert lost.wait(30)
    found = content(tmp_path / "study")
    assert found == local
