"""The notebook for Colab: nothing of a run is left in it, its commands and numbers are true, and it runs on `smoke`."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from la_reconvla import cli
from la_reconvla.cli.tree import find
from la_reconvla.study.disk import disk
from la_reconvla.study.presets import preset
from la_reconvla.study.shareable import size_text

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks/t4.ipynb"
SMOKE: dict[str, Any] = {"PRESET": "smoke", "MODEL": "", "CONDITIONS": "C2 C4", "SEEDS": "0", "REHEARSAL": 20}
SMOKE |= {"TASKS": "0", "DEMOS": 4, "SIZE": 56, "STRIDE": 8}


def cells() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def tagged(tag: str) -> list[dict[str, Any]]:
    return [cell for cell in cells() if tag in cell["metadata"].get("tags", ())]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def parameters() -> dict[str, Any]:
    (cell,) = tagged("parameters")
    values: dict[str, Any] = {}
    exec(source(cell), values)
    return {name: value for name, value in values.items() if name.isupper()}


def commands() -> list[str]:
    code = "\n".join(source(cell) for cell in cells() if cell["cell_type"] == "code").replace("\\\n", " ")
    return re.findall(r"^\s*!(la-reconvla .*)$", code, re.MULTILINE)


def test_nothing_of_a_run_is_left_in_it() -> None:
    for cell in cells():
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
    assert len({cell["id"] for cell in cells()}) == len(cells())


def test_it_asks_for_what_the_preset_needs() -> None:
    given, config = parameters(), preset("paper")
    assert given["PRESET"] == "paper"
    assert [int(task) for task in given["TASKS"].split()] == list(config.tasks)
    assert (given["DEMOS"], given["STRIDE"]) == (config.demos, config.frame_stride)
    assert (given["MODEL"], given["SIZE"]) == (config.backbone.source, config.backbone.image_size)  # pyright: ignore
    assert set(given) == {*SMOKE, "FOLDER", "REPOSITORY"}


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    named = {"BACKBONE": "--backbone a/b", "DEMONSTRATIONS": "demos", "STUDY": "study", "REHEARSED": "run"}
    words = shlex.split(command.format(**parameters(), **named))
    name, _, _ = find(words[1:])
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    options = {word for word in words if word.startswith("--")}
    assert all(option in shown or option.replace("--no-", "--") in shown for option in options), name


def test_its_numbers_are_those_of_the_plan() -> None:
    """Weights of 125 MB a policy and the hours are in docs/results/plan.md, which the plan's own tests hold."""
    said = source(cells()[0])
    config = preset("paper").changed(conditions=tuple(parameters()["CONDITIONS"].split()))
    needs = disk(config, 4 * 31.3e6)
    for size in (needs.finished, needs.demonstrations, needs.weights, needs.state):
        assert re.search(rf"\b{size / 1e9:.1f} GB", said), size_text(size)
    planned = (ROOT / "docs/results/plan.md").read_text(encoding="utf-8")
    for number in ("3.7 hours", "44 hours", "7.4 GB"):
        assert number in said
        assert number in planned


@pytest.mark.sim
@pytest.mark.slow
def test_it_runs_on_the_preset_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but what only Colab has: cloning, installing, logging in, the mounted Drive."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    programs = Path(sys.executable).parent
    for name, value in {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "IPYTHONDIR": str(tmp_path / "i"),
    }.items():
        monkeypatch.setenv(name, value)
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    book.cells = [cell for cell in book.cells if "colab" not in cell.metadata.get("tags", ())]
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            given = {**SMOKE, "FOLDER": str(tmp_path / "a drive")}
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in given.items())
    client = nbclient.NotebookClient(
        book, timeout=840, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    study = tmp_path / "a drive/study"
    assert json.loads((study / "results.json").read_text())["study"]["preset"] == "smoke"
    shown = "".join(out.get("text", "") for cell in book.cells for out in cell.get("outputs", ()))
    assert "4 episodes" in shown
    tables = [out.data for cell in book.cells for out in cell.get("outputs", ()) if "data" in out]
    assert any("Task success" in data.get("text/markdown", "") for data in tables)
