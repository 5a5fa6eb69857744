"""The command line: what is wrong is said in one message, before long work, and nothing on the disk has changed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_type_hints

import imageio_ffmpeg
import pytest
import torch
from safetensors.torch import load, save_file
from test_hdf5 import make_header, make_recording

import la_reconvla
from command_line import called
from la_reconvla import cli, kinds, leases
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.cli.tree import HIDDEN, MOVED, commands
from la_reconvla.data.hdf5_writer import write_file
from la_reconvla.episodes import Label, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.sim.collection_config import CollectConfig
from la_reconvla.sim.prepare import INSTALL_OPENGL, CannotStart
from la_reconvla.storage import read_jsonl
from la_reconvla.study.options import (
    CompareOptions,
    EvaluateOptions,
    PlanOptions,
    PolicyChanges,
    ScheduleChanges,
    StudyChanges,
)
from la_reconvla.study.presets import StudyConfig
from la_reconvla.training.checkpoint import WEIGHTS
from la_reconvla.training.loop import TrainConfig
from la_reconvla.training.trackers import METRICS

POLICY = (
    "cameras fit held-out backbone weights lora-rank quantize dtype chunk decoding proprio wrist max-tokens "
    "norm-pixels latents steps ema shift gaze device track"
)
COMMANDS = {  # and the names of their options, which scripts depend on
    "check machine": "out",
    "check plan": "backbone device condition batch-size accumulate chunk lora-rank quantize dtype checkpointing "
    "train-vision last decoding",
    "check power": "seeds tasks episodes arms between-seeds agreement tests shared",
    "check speed": "backbone device dtype threads repeats seconds only demonstrations episodes out",
    "data collect": "out suite tasks demos placement quality image-size frame-stride wrist maps noise mistakes workers "
    "seed correct allow-any-mujoco cluster",
    "data render": "image-size quality frame-stride wrist maps workers allow-any-mujoco",
    "data import": "out rate orientation cameras binary instruction",
    "data check": "sheet",
    "data convert": "pictures",
    "data boxes": "out source threshold every device",
    "data scenes": "out scenes image-size workers seed",
    "train": "demonstrations out condition seed preset init-from launch processes sharded batch-size accumulate "
    f"learning-rate {POLICY}",
    "eval": "dataset episodes suite tasks placement workers out device view floors demonstrations allow-train-starts "
    "allow-any-mujoco max-steps instruction execute words cluster",
    "study run": "preset out seeds conditions grid suite tasks placement demos episodes also-official elsewhere "
    f"elsewhere-episodes hypotheses demonstrations offline workers devices cluster records shard separate {POLICY}",
    "study merge": "workers",
    "study records": "out",
    "study plan": "cells machines workers measured seeds conditions grid suite tasks placement demos episodes "
    "also-official elsewhere elsewhere-episodes",
    "study report": "out figures csv gif rrd",
    "study compare": "out episodes suite tasks placement workers device allow-any-mujoco",
    "study film": "out suite task placement episode size allow-any-mujoco",
    "look": "backbone image instruction out against per-head layers device",
    "try": "port suite task scene out device allow-any-mujoco",
    "serve": "port host token-file instruction device clients",
    "share folder": "out merged",
    "share hub": "repo merged weights license datasets private",
    "share pull": "out revision",
    "share lerobot": "out",
    "share from-lerobot": "out",
    "pretrain": "scenes out demonstrations hold-out objective patch stem weights wrist steps batch-size "
    "demonstration-batch words-weight learning-rate optimizer device seed threads",
    "words": "scenes out weights seed",
}
CHILD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
CHILD += "from la_reconvla.cli import main; main()"
WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name == 'torch': raise SystemExit('torch')
sys.meta_path.insert(0, NoTorch())
from la_reconvla.cli import main; main()
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Calls the command line in this process; gives its exit code and what it said, line breaks taken out."""

    def call(*arguments: object) -> tuple[int, str]:
        code, out, err = called(monkeypatch, capsys, *arguments)
        return code, " ".join((out + err).split())

    return call


def everything(folder: Path) -> dict[Path, bytes]:
    """Of each file its content, but for leases, which are renewed."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(leases.PREFIX))
    return {path: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    recordings = [make_recording(index, length=12, size=16, wrist=False) for index in range(4)]
    write_file(folder / "pick_demo.hdf5", make_header(size=16), recordings)
    return folder


@pytest.fixture(scope="module")
def trained(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from la_reconvla.study.train_cells import train_one

    return train_one(
        demonstrations, tmp_path_factory.mktemp("trained") / "run", "C4", 0, "smoke", {"steps": 2, "device": "cpu"}
    )


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A run of two steps that a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")


def no_long_work(*_: object, **__: object) -> None:
    pytest.fail("long work began before the input was checked")


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_and_says_what_it_is(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # boxes below each other
    monkeypatch.setattr(sys, "argv", ["la-reconvla", *command.split(), "--help"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: la-reconvla {command} " in shown
    options = re.findall(r"^\W+?--([a-z][a-z-]+).*?\s{2,}\W*(.*)", shown, re.MULTILINE)
    assert {name for name, _ in options} == set(COMMANDS[command].split())
    for name, explained in options:
        assert re.match(r"[a-z]\w*", explained, re.IGNORECASE), f"{command} --{name} has no help"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_line_of_a_help_is_wider_than_the_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["la-reconvla", *command.split(), "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search(r"\w+s options|``", shown)


def test_the_first_help_lists_what_a_beginner_needs(run) -> None:
    code, said = run("--help")
    assert code == 0
    shown = {name for name in COMMANDS if name.split()[0] not in HIDDEN}
    assert all(re.search(rf"\b{word}\b", said) for name in shown for word in name.split())
    assert len({name.split()[0] for name in shown}) <= 9
    assert not any(re.search(rf" {word}  ", said) for word in HIDDEN)
    assert set(commands()) == set(COMMANDS)


@pytest.mark.parametrize("branch", ["check", "data", "study", "share"])
def test_a_branch_lists_its_commands(run, branch: str) -> None:
    inner = [name.split()[1] for name in COMMANDS if name.startswith(f"{branch} ")]
    for words, expected in (([branch, "--help"], 0), ([branch, "-h"], 0), ([branch], 2)):
        if branch == "check" and expected:
            continue  # by itself it checks the machine
        code, said = run(*words)
        assert code == expected
        assert f"usage: la-reconvla {branch} COMMAND" in said
        assert all(re.search(rf" {word} [A-Z]", said) for word in inner)


def test_check_alone_checks_the_machine(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("la_reconvla.sim.machine.check_machine", lambda out: asked.append(out) or [])
    for words in (
        ["check"],
        ["check", "machine"],
        ["check", "--out", tmp_path],
        ["check", "machine", "--out", tmp_path],
    ):
        assert run(*words)[0] == 0
    assert asked == [Path("."), Path("."), tmp_path, tmp_path]


@pytest.mark.parametrize("old", MOVED)
def test_an_old_spelling_names_the_new_one_with_the_same_options(run, old: str) -> None:
    rest = ["--out", "a folder", "--seeds", "0", "1"]
    code, said = run(old, *rest)
    assert code == 2
    assert said == f"error: {old} is now `la-reconvla {MOVED[old]}`; type: la-reconvla {MOVED[old]} {shlex.join(rest)}"
    assert MOVED[old] in {*COMMANDS, "check"}


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("trian", "train"),
        ("evalute", "eval"),
        ("colect", "data collect"),
        ("bench-mark", "check speed"),
        ("data anotate", "data boxes"),
        ("study rum", "study run"),
        ("study pln", "study plan"),
        ("check plam", "check plan"),
    ],
)
def test_a_mistyped_command_gets_the_nearest_names(run, words: str, meant: str) -> None:
    code, said = run(*words.split())
    assert code == 2
    assert said.startswith(f"error: unknown command '{words}': did you mean `la-reconvla {meant}`")


def test_a_command_like_none_is_sent_to_the_help(run) -> None:
    assert run("qqqq") == (2, "error: unknown command 'qqqq': `la-reconvla --help` lists them")


def parsed(monkeypatch: pytest.MonkeyPatch, run, name: str, target: str, *words: object) -> dict[str, object]:
    """What a command hands to the function that does its work."""
    given: dict[str, object] = {}

    def record(*positional: object, **named: object) -> None:
        given.update({str(place): value for place, value in enumerate(positional)}, **named)
        raise UserError("enough")

    monkeypatch.setattr(target, record)
    code, said = run(*name.split(), *words)
    assert (code, said.endswith("error: enough")) == (2, True), said
    return given


def test_study_run_takes_its_preset_either_way(run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--seeds", 0, 1, "--no-wrist", "--norm-pixels", "--steps", 3)
    for words in ((), ("small",), ("--preset", "small")):
        target = "la_reconvla.study.ablation.ablate"
        given = parsed(monkeypatch, run, "study run", target, *words, *options)
        preset, out, workers, changes, hypotheses, recorded, devices, records, share = given.values()
        assert preset == ("small" if words else "quick")
        assert (out, workers, hypotheses, recorded, devices, records, share) == (None, 0, None, None, (), None, None)
        assert isinstance(changes, dict)
        chosen = {name: value for name, value in changes.items() if value not in (None, False) or name == "wrist"}
        assert chosen == {"seeds": (0, 1), "wrist": False, "norm_pixels": True, "steps": 3}
    for words in (("--offline",), ("--demonstrations", "demos")):
        code, said = run("study", "run", "small", *words)
        assert (code, "give both --demonstrations FOLDER and --offline" in said) == (2, True)
    assert run("study", "run", "small", "--preset", "quick") == (2, "error: two presets, small and quick: name one")


def test_options_in_groups_arrive_together(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("--out", tmp_path, "--episodes", 3, "--tasks", 1, 2, "--placement", "official", "--workers", 4)
    chosen = {"out": tmp_path, "episodes": 3, "tasks": (1, 2), "placement": "official", "workers": 4}
    target = "la_reconvla.study.evaluate_one.evaluate_one"
    run_, options = parsed(monkeypatch, run, "eval expert", target, *words, "--floors", "--view", "grey_image").values()
    assert (run_, options) == ("expert", EvaluateOptions(**chosen, floors=True, view="grey_image"))
    target = "la_reconvla.study.head_to_head.compare"
    runs, options = parsed(monkeypatch, run, "study compare a b", target, *words).values()
    assert (runs, options) == (("a", "b"), CompareOptions(**chosen))
    words = ("--device", "l4", "--lora-rank", 2, "--no-checkpointing", "--last", 3)
    (options,) = parsed(monkeypatch, run, "check plan", "la_reconvla.study.plan.plan_one", *words).values()
    assert options == PlanOptions(device="l4", lora_rank=2, checkpointing=False, last=3)
    words = ("--out", tmp_path, "--tasks", 1, "--no-maps", "--demos", 4, "--workers", 2)
    (config,) = parsed(monkeypatch, run, "data collect", "la_reconvla.sim.collect.collect", *words).values()
    assert config == CollectConfig(out=tmp_path, tasks=(1,), maps=False, demos=4, workers=2)


def test_an_option_that_may_be_left_out_is_shown_as_what_it_is(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for name in COMMANDS:
        assert "None" not in run(*name.split(), "--help")[1], name
    _, said = run("study", "run", "--help")
    for shown in ("--seeds [INT [INT ...]] training seeds", "--wrist, --no-wrist use", "--out PATH study folder"):
        assert shown in said
    assert "(default: the preset's)" in said
    assert run("study", "run", "--seeds", "None")[0] == 2


def test_plan_says_what_it_does_before_it_loads_torch() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *["check", "plan", "--backbone", "some/model", "--device", "l4"]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert " ".join(done.stderr.split()).startswith("Planning one training step of some/model on l4")
    assert done.stderr.endswith("\ntorch\n")


@pytest.mark.parametrize("command", ["study run", "data collect", "check speed"])
def test_help_loads_none_of_the_heavy_rooms(command: str) -> None:
    loud = [sys.executable, "-X", "importtime", "-m", "la_reconvla", *command.split(), "--help"]
    done = subprocess.run(loud, capture_output=True, text=True, check=True)
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tyro" in loaded
    assert not loaded & {"torch", "mujoco", "h5py", "scipy", "transformers"}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["eval", "--help"], ["--version"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(words: list[str], unbuffered: str) -> None:
    """As in ``la-reconvla eval --help | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "la_reconvla", *words]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_may_be_changed_of_a_preset_is_a_field_of_its_type() -> None:
    choices = {"backbone", "lora_rank", "latents", "grid", "proprio"}  # these stand for a value, or for several fields
    configs = (StudyConfig, TrainConfig, SmallPaliGemma, Pretrained, MAEDecoder)
    changed = set()
    for changes in (PolicyChanges, ScheduleChanges, StudyChanges):
        for name, offered in get_type_hints(changes).items():
            if name not in choices:
                holders = [get_type_hints(config)[name] for config in configs if name in config.__dataclass_fields__]
                assert holders, f"nothing has a field {name}"
                assert all(offered == (held | None) for held in holders), f"{name}: {offered}, {holders}"
                changed.add(name)
    assert len(changed) == 30


@pytest.mark.parametrize(
    "arguments", [["trian"], [], ["train"], ["study", "run", "--seeds", "one"], ["study", "report"]]
)
def test_words_that_do_not_parse(run, arguments: list[str]) -> None:
    code, said = run(*arguments)
    assert code == 2
    assert "la-reconvla" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "study --foo",
            "unknown option '--foo' of study: a command comes first; `la-reconvla study --help` lists them",
        ),
        ("check qqqq", "unknown command 'check qqqq': `la-reconvla check --help` lists them"),
        ("train --wrist True --preset smoke", "--wrist True: a yes or no is a flag; type --wrist"),
        ("study run --norm-pixels=False", "--norm-pixels False: a yes or no is a flag; type --no-norm-pixels"),
    ],
)
def test_a_wrong_word_is_named_with_what_helps(run, arguments: str, message: str) -> None:
    assert run(*arguments.split()) == (2, f"error: {message}")


@pytest.mark.parametrize("option", ["--suite libero_gaol", "--suite=libero_gaol"])
@pytest.mark.parametrize("command", ["eval", "study compare runs/one", "data collect"])
def test_a_missing_word_does_not_hide_an_unknown_suite(run, command: str, option: str) -> None:
    missing = {"eval": "RUN", "study compare runs/one": "OTHER", "data collect": "--out"}[command]
    code, said = run(*command.split(), *option.split())
    assert code == 2
    assert f"Missing from la-reconvla {command.removesuffix(' runs/one')}:" in said
    assert missing in said
    assert "error: unknown suite 'libero_gaol': did you mean libero_goal or" in said
    for right in ("libero_goal", "toy"):
        assert "unknown suite" not in run(*command.split(), "--suite", right)[1]


def test_version_and_help_are_words_too(run) -> None:
    assert run("--version") == (0, f"la-reconvla {la_reconvla.__version__}")
    for words in ((), ("study",), ("study", "run")):
        assert run("help", *words) == run(*words, "--help")
        assert run("help", *words)[0] == 0


def test_help_shows_no_markup(run) -> None:
    for name in ("", "check", "data", "study", "share", *COMMANDS):
        assert "``" not in run(*name.split(), "--help")[1], name


def test_a_module_of_the_users_own_is_imported_before_the_command(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(kinds, "REGISTERED", dict(kinds.REGISTERED))
    (tmp_path / "my_parts.py").write_text(
        "from dataclasses import dataclass\nimport la_reconvla\n"
        "@la_reconvla.register\n@dataclass(frozen=True)\nclass MyHead:\n    size: int = 3\n"
    )
    saved = {"kind": "my_parts.MyHead", "size": 4}
    with pytest.raises(UserError, match="on the command line: --import my_parts"):
        kinds.from_json(saved, ())
    for words in (("--import", "my_parts", "eval"), ("eval", "--import=my_parts")):
        kinds.REGISTERED.clear()
        sys.modules.pop("my_parts", None)
        seen = parsed(monkeypatch, run, " ".join(words), "la_reconvla.study.evaluate_one.evaluate_one", "expert")
        assert seen["0"] == "expert"
        assert kinds.from_json(saved, ()).size == 4
    for name, said in (
        ("my_prats", "--import my_prats: No module named 'my_prats'"),
        ("my_parts.py", "takes the name of a module, not 'my_parts.py': type --import my_parts"),
        ("../my_parts", "takes the name of a module, not '../my_parts'"),
        ("", "takes the name of a module, not ''"),
    ):
        code, message = run("eval", "expert", "--import", name)
        assert code == 2
        assert said in message


@pytest.mark.parametrize(
    "arguments",
    [
        "eval runs/nope",
        "share folder runs/nope --out x",
        "share hub runs/nope --repo a/b",
        "share lerobot runs/nope --out x",
    ],
)
def test_a_missing_run_shows_before_torch_is_imported(tmp_path: Path, arguments: str) -> None:
    (tmp_path / "runs" / "nodes").mkdir(parents=True)
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == "error: there is no folder runs/nope: did you mean runs/nodes?\n"
    assert done.returncode == 2


# ---------------------------------------------------------------- unknown names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "study run quik",
            "unknown preset 'quik': did you mean quick?",
        ),
        ("study run smoke --conditions C1 C5", "unknown condition 'C5': did you mean C4 or"),
        ("study run smoke --conditions C1 C1", "conditions are listed twice: C1, C1"),
        ("study run smoke --conditions no-image", "'no-image' is a floor"),
        ("study run smoke --seeds 0 0", "seeds are listed twice: 0, 0"),
        ("study run smoke --tasks 10", "unknown task 10 of libero_spatial: choose a number from 0 to 9"),
        ("study run smoke --demos 5", "ask for an even number, not 5"),
        ("study run smoke --demos 0", "demos must be at least 1"),
        ("study run smoke --demos 2", "demos must be at least 4, not 2: two scenes of two"),
        ("study run smoke --steps 0", "steps must be at least 1"),
        ("study run smoke --episodes 0", "episodes must be at least 1"),
        ("study run smoke --device toaster", "device 'toaster' is not usable here"),
        ("study run smoke --devices cpu toaster", "device 'toaster' is not usable here"),
        ("study run smoke --devices cpu meta", "--devices cpu meta are of different kinds (cpu, meta)"),
        ("study run smoke --devices cpu cpu --device cpu", "--devices where policies train side by side: give one"),
        ("data collect --suite libero_spatail", "unknown suite 'libero_spatail': did you mean libero_spatial"),
        ("data collect --tasks 3 10", "unknown task 10"),
        ("data collect --demos 0", "demos must be at least 1"),
        ("data collect --suite libero_10 --tasks 5 --placement official", "the scripted expert cannot do task 5"),
        ("data collect --suite libero_10 --placement wide", "no wide placements"),
    ],
)
def test_a_study_that_cannot_be(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.setattr("la_reconvla.sim.collect._record_all", no_long_work)
    code, said = run(*arguments.split(), "--out", tmp_path / "out")
    assert said.startswith("error: ")
    assert message in said
    assert code == 2
    assert not everything(tmp_path), "a folder that nothing fits into afterwards"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--condition", "c4", "unknown condition 'c4': did you mean"),
        ("--preset", "smal", "unknown preset 'smal': did you mean small"),
        ("--device", "toaster", "device 'toaster' is not usable here"),
        ("--steps", "0", "steps must be at least 1"),
    ],
)
def test_training_that_cannot_be(run, demonstrations: Path, tmp_path: Path, option, value, message) -> None:
    options = {"--demonstrations": demonstrations, "--out": tmp_path / "run", "--preset": "smoke", option: value}
    code, said = run("train", *(word for pair in options.items() for word in pair))
    assert said.startswith("error: ")
    assert message in said
    assert code == 2
    assert not everything(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("eval nowhere", "there is no folder nowhere"),
        ("eval expert --suite libero_spatail", "unknown suite 'libero_spatail': did you mean libero_spatial"),
        ("eval random --tasks 10 --placement official", "unknown task 10"),
        ("eval random --episodes 0 --placement official", "episodes must be at least 1"),
        ("eval random --execute 3", "for ws://"),
        ("eval ws://127.0.0.1:9 --tasks 0 --episodes 1", "no policy server answers there"),
        ("eval lerobot:nowhere", "nowhere/config.json: no such file"),
        ("share from-lerobot nowhere --out run", "nowhere/config.json: no such file"),
        ("serve nowhere", "there is no folder nowhere"),
        ("try nowhere", "there is no folder nowhere"),
        ("try base --port 70000", "--port is a number from 0 to 65535"),
        ("try base --suite libero_gaol", "unknown suite 'libero_gaol': did you mean libero_goal"),
        ("try base --suite libero_goal --task 10", "unknown task 10"),
        ("serve base --host 0.0.0.0", "moves the robot"),
        (
            "study report nowhere",
            "nowhere is no study: make one there with `la-reconvla study run quick --out nowhere`",
        ),
        ("study report nowhere elsewhere", "nowhere is no study"),
        ("study report nowhere --out page.html", "name a second study"),
        (
            "train --demonstrations nowhere --out run",
            "nowhere: no such folder; make one with `la-reconvla data collect",
        ),
    ],
)
def test_what_is_not_there(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = run(*arguments.split())
    assert said.startswith("error: ")
    assert message in said
    assert code == 2
    assert not everything(tmp_path)


# ---------------------------------------------------------------- damaged files


def test_demonstrations_cut_short(run, demonstrations: Path, tmp_path: Path) -> None:
    path = tmp_path / "demonstrations" / "pick_demo.hdf5"
    path.parent.mkdir()
    whole = next(demonstrations.iterdir()).read_bytes()
    for content, message in ((whole[: len(whole) // 2], "truncated or damaged"), (b"PK hello", "not an HDF5 file")):
        path.write_bytes(content)
        code, said = run("train", "--demonstrations", path.parent, "--out", tmp_path / "run", "--preset", "smoke")
        assert said.startswith(f"error: {path}")
        assert message in said
        assert code == 2
        assert list(everything(tmp_path)) == [path]


def test_a_run_of_another_configuration(run, demonstrations: Path, finished: Path) -> None:
    before = everything(finished)
    options = ("--demonstrations", demonstrations, "--out", finished, "--preset", "smoke", "--steps", 2)
    for other in (("--condition", "C1"), ("--seed", 1)):
        code, said = run("train", *options, *other)
        assert "error: " in said
        assert "holds a run of another configuration" in said
        assert code == 2
    code, _ = run("train", *options)
    assert code == 0
    assert {path: data for path, data in everything(finished).items() if path in before} == before


@pytest.mark.parametrize("damage", ["truncated", "shape", "missing", "another program's", "config"])
def test_a_damaged_run_is_not_evaluated(
    run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr("la_reconvla.study.evaluate_one.evaluation_starts", no_long_work)
    path = finished / WEIGHTS
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[:-100])
        expected = "model.safetensors is damaged"
    elif damage == "shape":
        save_file({**load(data), "action_head.logits.bias": torch.zeros(5)}, path)
        expected = "action_head.logits.bias is [5], expected [1792]"
    elif damage == "missing":
        path.unlink()
        expected = "model.safetensors does not exist: train this run first"
    elif damage == "another program's":
        (finished / "config.json").write_text('{"type": "act"}')
        expected = f"evaluate it as lerobot:{finished}"
    else:
        (finished / "config.json").write_text("{}")
        expected = "config.json is no run of this version"
    before = everything(tmp_path)
    code, said = run("eval", finished)
    assert said.startswith("error: ")
    assert expected in said
    assert code == 2
    assert everything(tmp_path) == before


@pytest.mark.parametrize(("suite", "tasks"), [("libero_spatial", (0,)), ("libero_object", tuple(range(10)))])
def test_a_run_is_evaluated_on_what_it_learned_or_on_a_whole_other_suite(
    run, finished: Path, monkeypatch: pytest.MonkeyPatch, suite: str, tasks: tuple[int, ...]
) -> None:
    asked: list[tuple[int, ...]] = []

    def starts(_: str, tasks: tuple[int, ...], *__: object, **___: object) -> None:
        asked.append(tuple(tasks))
        raise UserError("enough")

    monkeypatch.setattr("la_reconvla.study.evaluate_one.evaluation_starts", starts)
    monkeypatch.setattr("la_reconvla.study.evaluate_one.require_simulator", lambda **_: None)
    assert run("eval", finished, "--suite", suite) == (2, "error: enough")
    assert asked == [tasks]


@pytest.mark.parametrize("who", ["expert", "random"])
def test_only_what_looks_has_floors(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = run("eval", who, "--view", "grey_image")
    assert f"{who} uses no image: --view grey_image is for a trained policy" in said
    assert code == 2
    assert not everything(tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--max-steps", "0"), "max_steps must be at least 1"),
        (("--instruction", " "), "--instruction is empty"),
        (("--instruction", "lift it", "--floors"), "leave it out for --floors"),
        (("--instruction", "lift it", "--view", "wrong_instruction"), "leave it out for --floors"),
        (("--instruction", "lift " * 500), "tokens, the context holds"),
    ],
)
def test_a_limit_or_an_instruction_that_cannot_be_is_refused(
    run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr("la_reconvla.study.evaluate_one.require_simulator", no_long_work)
    before = everything(tmp_path)
    code, said = run("eval", finished, *words, "--out", tmp_path / "out")
    assert code == 2
    assert expected in said
    assert everything(tmp_path) == before


def test_who_reads_no_words_is_told_none(run) -> None:
    assert "expert reads no words" in run("eval", "expert", "--instruction", "lift it")[1]


def test_a_limit_and_an_instruction_have_a_folder_of_their_own_and_reach_the_policy(
    run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, str | None, int | None]] = []

    def note(evaluations, starts, settings, workers, advance) -> None:
        asked.extend((e.folder, e.instruction, settings.max_steps) for e in evaluations)
        raise UserError("enough")

    for name, fake in (("require_simulator", lambda **_: None), ("evaluation_starts", lambda *_, **__: [])):
        monkeypatch.setattr(f"la_reconvla.study.evaluate_one.{name}", fake)
    monkeypatch.setattr("la_reconvla.study.evaluate_one.evaluate", note)
    for words in (
        (),
        ("--max-steps", "50"),
        ("--instruction", "lift: it"),
        ("--instruction", "go", "--max-steps", "9"),
    ):
        assert run("eval", finished, *words) == (2, "error: enough")
    assert [(given, limit) for _, given, limit in asked] == [(None, None), (None, 50), ("lift: it", None), ("go", 9)]
    assert len({folder for folder, _, _ in asked}) == 4


def test_the_table_of_episodes_stands_alone(run, tmp_path: Path) -> None:
    code, said = run("study", "report", tmp_path, "--csv", tmp_path / "x.csv", "--figures", tmp_path / "figures")
    assert (code, "leave the other words out" in said) == (2, True)
    code, said = run("study", "report", tmp_path, "--csv", tmp_path / "x.csv")
    assert (code, "holds no episodes" in said) == (2, True)


# ---------------------------------------------------------------- refused before anything is written


def test_an_instruction_longer_than_the_context_is_not_trained_on(run, demonstrations: Path, tmp_path: Path) -> None:
    options = ("--demonstrations", demonstrations, "--preset", "smoke", "--max-tokens", 2)
    code, said = run("train", *options, "--out", tmp_path / "run")
    assert "tokens, the context holds 2: shorten it or train with a larger max_tokens" in said
    assert code == 2
    assert not list(tmp_path.iterdir())


def test_an_instruction_longer_than_the_context_is_not_collected(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("la_reconvla.study.domains.require_simulator", lambda: None)
    monkeypatch.setattr("la_reconvla.study.domains.collect", no_long_work)
    code, said = run("study", "run", "smoke", "--max-tokens", 8, "--out", tmp_path / "study")
    assert "tokens, the context holds 8" in said
    assert code == 2
    assert not list(tmp_path.iterdir())


def test_an_instruction_longer_than_the_context_is_not_evaluated(
    run, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demonstrations here say little; LIBERO's own instructions are longer."""
    options = ("--demonstrations", demonstrations, "--preset", "smoke", "--max-tokens", 8, "--steps", 1)
    assert run("train", *options, "--out", tmp_path / "run")[0] == 0
    monkeypatch.setattr("la_reconvla.study.evaluate_one.require_simulator", no_long_work)
    monkeypatch.setattr("la_reconvla.study.evaluate_one.evaluation_starts", no_long_work)
    before = everything(tmp_path)
    for placement in ("wide", "official"):
        code, said = run("eval", tmp_path / "run", "--placement", placement)
        assert "tokens, the context holds 8" in said
        assert code == 2
    assert everything(tmp_path) == before


@pytest.mark.parametrize("command", ["study run smoke", "eval random", "eval expert", "eval RUN"])
def test_without_opengl_nothing_begins(
    run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    broken = CannotStart("it is broken", INSTALL_OPENGL)
    monkeypatch.setattr("la_reconvla.sim.machine._drawing_error", lambda library: broken)
    before = everything(tmp_path)
    code, said = run(*command.replace("RUN", str(finished)).split(), "--out", tmp_path / "out")
    assert said.startswith("error: ")
    assert "is broken; repair it with: " in said
    assert code == 2
    assert everything(tmp_path) == before


# ---------------------------------------------------------------- evaluation, on the simulator


def frames_of(video: Path) -> int:
    reader = imageio_ffmpeg.read_frames(str(video))
    assert next(reader)["codec"] == "h264"
    return sum(1 for _ in reader)


@pytest.mark.sim
@pytest.mark.slow
def test_an_evaluation_leaves_a_record_a_video_and_a_summary(run, finished: Path) -> None:
    options = ("eval", finished, "--episodes", 1, "--tasks", 0, "--workers", 1, "--device", "cpu")
    code, said = run(*options)
    assert code == 0
    folder = finished / "libero_spatial-wide"
    (record,) = read_episodes(folder)
    assert record.label == Label("C4", 0)
    assert record.start.id == "libero_spatial/0/wide/test/0"
    assert record.success is False, "a policy of two steps"
    assert f"{finished}: 0 of 1 episodes succeeded, 0.0 % (95 % interval 0.0 to 79.3)" in said
    assert f"stages: approached {int(record.reached.approached or 0)}, " in said
    assert record.track is not None
    assert (folder / record.track).is_file()
    (video,) = (folder / "videos").iterdir()
    assert video.name == "libero_spatial_task0_wide_test_0_failure.mp4"
    assert frames_of(video) == -(-record.steps // 4) + 1, "a picture every four control steps, and the end"

    code, _ = run(*options)
    assert code == 0
    assert read_episodes(folder) == [record], "what is done is not run again"


@pytest.mark.sim
@pytest.mark.slow
def test_a_floor_on_training_starts_says_how_many_were_trained_on(run, finished: Path) -> None:
    options = ("--allow-train-starts", "--view", "wrong_instruction", "--tasks", 0, "--workers", 1, "--device", "cpu")
    code, said = run("eval", finished, "--episodes", 2, *options)
    assert code == 0
    folder = finished / "libero_spatial-wide-train-wrong_instruction"
    records = read_episodes(folder)
    starts = {record.start.id for record in records}
    assert starts == {"libero_spatial/0/wide/train/0", "libero_spatial/0/wide/train/1"}
    assert {record.label.floor for record in records} == {"wrong_instruction"}
    known = len(starts & set(json.loads((finished / "config.json").read_text())["train_starts"]))
    assert f"{known} of these 2 starts were used in training" in said
    policy = json.loads((folder / "evaluation.json").read_text())["policy"]
    assert policy["view"] == "wrong_instruction"
    told = {true: wrong for _, true, wrong in policy["swaps"]}
    assert {record.start.instruction for record in records} == set(told)
    assert all(wrong != true for true, wrong in told.items())
    assert not (finished / "libero_spatial-wide").exists()


def test_a_damaged_results_file(run, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": 7}')
    code, said = run("study", "report", tmp_path)
    assert "schema 7 is not 2" in said
    assert code == 2
    assert [path.name for path in everything(tmp_path)] == ["results.json"]


# ---------------------------------------------------------------- interrupted


@pytest.mark.slow
def test_an_interrupted_training_goes_on(run, demonstrations: Path, tmp_path: Path) -> None:
    options = ["train", "--demonstrations", str(demonstrations), "--out", str(tmp_path / "run"), "--preset", "smoke"]
    options += ["--steps", "60", "--device", "cpu"]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while child.poll() is None and not any(line["step"] >= 20 for line in read_jsonl(tmp_path / "run" / METRICS)):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate()
    assert child.returncode == 130
    assert "run the same command again to resume" in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "run" / WEIGHTS).exists()

    code, _ = run(*options)
    assert code == 0
    assert (tmp_path / "run" / WEIGHTS).exists()
    assert [line["step"] for line in read_jsonl(tmp_path / "run" / METRICS)] == [0, 10, 20, 30, 40, 50, 60]
