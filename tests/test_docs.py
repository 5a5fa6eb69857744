"""The documentation names what exists: functions, files, commands, presets, and code that runs."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from la_reconvla import cli
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.cli.tree import TREE, Branch, find
from la_reconvla.conditions import find_condition
from la_reconvla.method.actions import ActionBins
from la_reconvla.method.policy import Policy
from la_reconvla.study.presets import PRESETS, StudyConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for named, body in fenced if named == language]


def resolve(name: str) -> object:
    """The object of a dotted name: the longest module, then attributes, fields of dataclasses included."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[attribute] if attribute in fields else getattr(found, attribute)
        return found
    raise ModuleNotFoundError(name)


def names(text: str) -> set[str]:
    return set(re.findall(r"`(la_reconvla(?:\.\w+)+)`", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_exists(page: Path) -> None:
    for name in names(page.read_text(encoding="utf-8")):
        resolve(name)


def test_every_name_in_a_docstring_exists() -> None:
    wrong = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for name in names(path.read_text(encoding="utf-8")):
            try:
                resolve(name)
            except (ModuleNotFoundError, AttributeError):
                wrong.append(f"{path.name}: {name}")
    assert wrong == []


def test_the_method_page_names_every_public_function_of_the_method() -> None:
    page = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "src/la_reconvla/method").glob("[a-z]*.py")):
        assert f"la_reconvla.method.{path.stem}." in page, f"docs/method.md says nothing of {path.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)|\b(?:src|srcset|href)=\"([^\"]+)\"", text):
        target, _, anchor = "".join(link).partition("#")
        if ":" not in target:
            file = page.parent / target if target else page
            assert file.is_file(), f"{page.name} links to {target}, which is no file"
            assert not anchor or anchor in anchors(file), f"{page.name} links to {target}#{anchor}: no such heading"


def anchors(page: Path) -> set[str]:
    """What a link can name in a page. Of equal headings only the first, since forge and site number the others."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.*?)(?: +#+)?$", prose, re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def test_anchors_are_those_of_the_forge(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# `quick`, at once\n\n```bash\n# no heading\n```\n\n## A - B: [c](d.md)\n\n## A - B: c\n", encoding="utf-8"
    )
    assert anchors(page) == {"quick-at-once", "a---b-c"}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r": ([\w/-]+\.md)$", navigation, re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.is_relative_to(ROOT / "docs")]
    beside = ["index.md", *(path.name for path in PAGES if path.parent == ROOT and path.name != "README.md")]
    assert sorted(named) == sorted([*pages, *beside])


HISTORY = {"log.md", "CHANGELOG.md"}  # these say what was typed then


def commands() -> list[str]:
    """What a reader may type: lines of fenced and of indented blocks."""
    lines = [
        line
        for page in PAGES
        if page.name not in HISTORY
        for line in re.findall(r"^(?: {4})?(la-reconvla .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return sorted({line.split("#")[0].strip() for line in lines})


def test_every_command_in_a_sentence_exists() -> None:
    """In the documentation, the Makefile and the messages of the package."""
    texts = [*(p for p in PAGES if p.name not in HISTORY), ROOT / "Makefile", *(ROOT / "src").rglob("*.py")]
    for path in texts:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("- command:") or "commit" in line:
                continue  # what a finished study was run with
            for named in re.findall(r"[`/ ]la-reconvla ((?:[a-z]+(?:-[a-z]+)* ?)+)", line):
                word, *rest = named.split()
                assert word in TREE, f"{path.name}: {line}"
                branch = TREE[word]
                if isinstance(branch, Branch):
                    assert rest[:1] in [[inner] for inner in branch.commands] or word == "check", f"{path.name}: {line}"


@pytest.mark.parametrize("command", commands())
def test_every_quoted_command_parses(command: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """With `--help` at the end the parser reads the words before it and explains the subcommand; nothing runs."""
    words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    name, _, _ = find([*words[1:], "--help"])
    assert f"usage: la-reconvla {name} " in shown
    for option in re.findall(r"--[a-z-]+", command):
        assert re.search(rf"{option}[ ,]", shown), f"{command}: no such option {option}"


def test_presets_and_conditions_named_exist() -> None:
    for command in commands():
        for option, known in (("(?:--preset|study run)", PRESETS.get), ("--conditions?", find_condition)):
            for found in re.findall(rf"{option} ((?:\w[\w.-]* ?)+)", command):
                assert all(map(known, found.split())), found


def row(preset: StudyConfig) -> str:
    rows, columns = preset.backbone.grid
    patches = f"{rows} x {columns}"
    cells = [f"`{preset.preset}`", f"{len(preset.tasks)} x {preset.demos}", patches, str(preset.train.steps)]
    cells += [str(len(preset.seeds)), str(len(preset.conditions)), str(preset.episodes)]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_table_of_presets_is_true(preset: StudyConfig) -> None:
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert row(preset) in page, f"put this row into docs/commands.md: {row(preset)}"


def sizes(preset: StudyConfig) -> str:
    b = preset.backbone
    side = b.grid[0]
    patch = b.image_size // side
    patches, masked = f"{side} x {side} of {patch} px", -(-side * side // 4)
    # a pretrained one has its size without its weights; its adapters count
    backbone: Any = b.skeleton() if isinstance(b, Pretrained) else b.build()
    head = preset.decoder.build(backbone.width, b.grid, patch)
    policy = Policy(backbone, ActionBins((-1.0,) * 7, (1.0,) * 7), head)
    parameters = {name: p.numel() / 1e6 for name, p in policy.named_parameters()}
    alone = sum(size for name, size in parameters.items() if not name.startswith("reconstruction_head."))
    cells = [f"`{preset.preset}`", f"{b.image_size} px", patches, str(masked), str(b.chunk), f"{alone:.2f}"]
    return f"| {' | '.join(cells)} | {sum(parameters.values()):.2f} |"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_sizes_of_the_presets_are_true(preset: StudyConfig) -> None:
    page = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    assert sizes(preset) in page, f"put this row into docs/method.md: {sizes(preset)}"


def test_the_tree_names_what_is_there() -> None:
    """Every module of the package is named, by itself or by its folder, and nothing else is."""
    page = (ROOT / "docs/code.md").read_text(encoding="utf-8")
    tree = next(block for block in blocks(page, "") if block.startswith("src/la_reconvla/"))
    folders: dict[int, Path] = {}
    named: set[Path] = set()
    for line in tree.splitlines():
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        parent = folders.get(max((d for d in folders if d < depth), default=-1), ROOT)
        assert (parent / name).exists(), f"the tree names {parent / name}"
        folders = {d: path for d, path in folders.items() if d < depth} | {depth: parent / name}
        named.add(parent / name)
    package = ROOT / "src/la_reconvla"
    for path in sorted(package.rglob("*.py")):
        inside = any(folder in named - {package} for folder in path.parents)
        if not path.name.startswith("__") and path not in named:
            assert inside, f"the tree leaves out {path}"


def test_the_lines_for_a_policy_of_your_own_run() -> None:
    """Those of README.md around a policy of three linear maps, and those of docs/own-policy.md as they are."""
    images, words, word_mask = torch.rand(2, 3, 224, 224), torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    act, see, look = torch.nn.Linear(8, 7), torch.nn.Linear(8, 256), torch.nn.Linear(8, 196)

    def policy(images: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, ...]:
        patches = images.unfold(2, 16, 16).unfold(3, 16, 16).flatten(2, 3).mean((1, -1, -2))[..., None]
        return act(words.mean(1)), see(patches * words.mean(1, keepdim=True)), look(words)[:, None].softmax(-1)

    (code,) = blocks(README, "python")
    here = {**locals(), "action_loss": lambda actions: actions.square().mean()}
    exec(code, here)
    assert here["mask"].sum(1).tolist() == [49, 49]
    assert all(layer.weight.grad.abs().sum() > 0 for layer in (act, see))
    assert see.weight.grad.abs().max() < 1e3

    (code,) = blocks((ROOT / "docs/own-policy.md").read_text(encoding="utf-8"), "python")
    there: dict = {}
    exec(code, there)
    assert there["mask"].sum(1).tolist() == [49, 49]
    assert there["patch_tokens"].grad.abs().sum() > 0


def test_the_badges_are_true() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    for name, told in (("python", f"{pythons[0]} to {pythons[-1]}"), ("licence", project["license"])):
        assert f">{told}<" in (ROOT / f"docs/assets/{name}.svg").read_text(encoding="utf-8")
        assert told in README
