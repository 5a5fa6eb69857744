"""What a tracking service gets: the lines of metrics.jsonl, each once, in one run, however often training is resumed.

The services are packages of a few lines that write down what they are told, behind accelerate's own classes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_train import SHORT, Stop, StopAt, train_tiny, weights, write_demonstrations

from la_reconvla.errors import UserError
from la_reconvla.storage import read_json, read_jsonl
from la_reconvla.study.ablation import ablate
from la_reconvla.study.train_cells import train_one
from la_reconvla.training.trackers import METRICS, TRACKED

FAKE = """
import json

class Run:
    def __init__(self, **options):
        self.write("init", options)
    def write(self, *said):
        with open({told!r}, "a") as file:
            file.write(json.dumps(said) + "\\n")
    def log(self, values, step=None):
        self.write("log", step, values)
    def finish(self):
        self.write("finish")
    def update(self, values, **options):
        self.write("config", values)

def init(**options):
    global config
    if {refuses}:
        raise RuntimeError("no API key\\nmore of it")
    config = Run.__new__(Run)
    return Run(**options)
"""


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"))


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a service; what it was told so far."""

    def install(name: str, refuses: bool = False) -> Path:
        told = tmp_path / f"told-{name}.jsonl"
        (tmp_path / f"{name}.py").write_text(FAKE.format(told=str(told), refuses=refuses))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return told

    yield install
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_gets_what_metrics_hold_in_one_run(demonstrations, tmp_path, service, name, stop) -> None:
    """Stopped after 3 of 4 steps, training is resumed at 2: the third step is trained, but not sent, again."""
    told, config = service(name), dataclasses.replace(SHORT, track=name)
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "run", ticker=StopAt(stop), config=config)
    run = train_tiny(demonstrations, tmp_path / "run", config=config)
    said = read_jsonl(told)
    begun = [options for kind, options in (line[:2] for line in said if line[0] == "init")]
    assert len(begun) == 2
    assert begun[0] == begun[1]
    assert begun[0]["resume"] == "allow"
    assert begun[0]["project"] == "la-reconvla"
    known = read_json(run / TRACKED)[name]["id"]
    assert begun[0]["name"] == f"C4/seed0/run/{known}"
    assert (begun[0].get("id") == known) is (name == "wandb")
    assert next(line[1] for line in said if line[0] == "config")["steps"] == 4
    lines, sent = read_jsonl(run / METRICS), [line[1:] for line in said if line[0] == "log"]
    assert [step for step, _ in sent] == [line.pop("step") for line in lines] == [0, 1, 2, 3, 4]
    for (_, values), line in zip(sent, lines, strict=True):
        assert values.keys() == line.keys()
        assert {**values, "samples_per_second": 0} == {**line, "samples_per_second": 0}
    assert said[-1] == ["finish"]


def test_tracking_may_begin_with_a_resumed_training(demonstrations, tmp_path, service) -> None:
    """And changes neither weights nor what identifies the run."""
    told, config = service("trackio"), dataclasses.replace(SHORT, track="trackio")
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "run", ticker=StopAt(3))
    run = train_tiny(demonstrations, tmp_path / "run", config=config)
    assert [line[1] for line in read_jsonl(told) if line[0] == "log"] == [0, 1, 2, 3, 4]
    plain = train_tiny(demonstrations, tmp_path / "plain")
    assert weights(run) == weights(plain)
    assert not (plain / TRACKED).exists()


def test_a_missing_package_or_login_is_said_before_anything_is_written(tmp_path, demonstrations, service, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    for name in ("wandb", "trackio"):
        with pytest.raises(UserError, match=rf"pip install -e '\.\[{name}\]'"):
            train_one(demonstrations, tmp_path / "run", "C4", 0, "smoke", {"track": name})
        with pytest.raises(UserError, match=rf"pip install -e '\.\[{name}\]'"):
            ablate("known-answer", tmp_path / "run", 1, {"track": name})
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    service("wandb", refuses=True)
    with pytest.raises(UserError, match=r"wandb starts no run \(no API key\): log in"):
        train_tiny(demonstrations, tmp_path / "run", config=dataclasses.replace(SHORT, track="wandb"))


def test_the_real_trackio_keeps_one_run(demonstrations, tmp_path, monkeypatch) -> None:
    """Without a network, in a folder of its own."""
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage

    config = dataclasses.replace(SHORT, track="trackio")
    with pytest.raises(Stop):
        train_tiny(demonstrations, tmp_path / "run", ticker=StopAt(3), config=config)
    run = train_tiny(demonstrations, tmp_path / "run", config=config)
    (name,) = SQLiteStorage.get_runs("la-reconvla")
    lines = SQLiteStorage.get_logs("la-reconvla", name)
    logged = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert logged == {line["step"]: pytest.approx(line["loss"]) for line in read_jsonl(run / METRICS) if "loss" in line}
    assert json.dumps(read_json(run / TRACKED)["trackio"]["id"])[1:-1] in name
