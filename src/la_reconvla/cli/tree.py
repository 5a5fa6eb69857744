"""The tree of commands: what there is, what it was called before, and what a mistyped word was meant as."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from la_reconvla.cli import attention, check, data, policies, studies, training
from la_reconvla.errors import UserError, nearest

PROGRAM = "la-reconvla"
Command = Callable[..., Any]


@dataclass(frozen=True)
class Branch:
    """Commands under one word.

    Attributes:
        about: what they have in common.
        commands: by their second word.
        alone: the one that the first word means by itself; None if a second word must follow.
    """

    about: str
    commands: Mapping[str, Command]
    alone: str | None = None


TREE: Mapping[str, Branch | Command] = {
    "check": Branch(
        "Check the machine; plan memory, statistical power and speed.",
        {"machine": check.machine, "plan": check.plan, "power": check.power, "speed": check.speed},
        alone="machine",
    ),
    "data": Branch(
        "Make demonstrations, in the simulator or from your own robot; target boxes and captioned scenes.",
        {
            "collect": data.collect,
            "render": data.render,
            "import": data.import_episodes,
            "check": data.check,
            "convert": data.convert,
            "boxes": data.boxes,
            "scenes": data.scenes,
        },
    ),
    "train": training.train,
    "eval": policies.evaluate,
    "study": Branch(
        "Plan, train and evaluate several arms, draw reports, compare and film policies.",
        {
            "run": studies.run,
            "plan": studies.plan,
            "merge": studies.merge,
            "records": studies.records,
            "report": studies.report,
            "compare": studies.compare,
            "film": studies.film,
        },
    ),
    "look": attention.look,
    "try": policies.try_,
    "serve": policies.serve,
    "share": Branch(
        "Give policies, studies and demonstrations to others, and get theirs: a folder, the Hugging Face hub, LeRobot.",
        {
            "folder": policies.folder,
            "hub": policies.hub,
            "pull": policies.pull,
            "lerobot": policies.lerobot,
            "from-lerobot": policies.from_lerobot,
        },
    ),
    "pretrain": training.pretrain,
    "words": attention.words,
}
HIDDEN = ("pretrain", "words")  # from the first help: they make and judge the weights that come with the package
MOVED = {
    "doctor": "check",
    "plan": "check plan",
    "power": "check power",
    "bench": "check speed",
    "collect": "data collect",
    "annotate": "data boxes",
    "scenes": "data scenes",
    "evaluate": "eval",
    "ablate": "study run",
    "report": "study report",
    "compare": "study compare",
    "export": "share folder",
    "push": "share hub",
}


def commands() -> dict[str, Command]:
    """Every command by its one or two words."""
    found: dict[str, Command] = {}
    for word, entry in TREE.items():
        inner = {f"{word} {second}": one for second, one in entry.commands.items()} if isinstance(entry, Branch) else {}
        found |= inner or {word: entry}  # pyright: ignore
    return found


def find(words: Sequence[str]) -> tuple[str, Command | None, list[str]]:
    """The command that a command line names.

    Args:
        words: all that follows the program's name.

    Returns:
        The words that name it, the command or None where these words ask for the help of a branch, and what follows.

    Raises:
        UserError: if there is no such command, or it is called otherwise today.
    """
    first, *rest = words or ("--help",)
    if first in ("-h", "--help"):
        return "", None, []
    entry = TREE.get(first)
    if entry is None:
        raise _moved(first, rest) if first in MOVED else _unknown(first)
    if not isinstance(entry, Branch):
        return first, entry, rest
    if rest and rest[0] in entry.commands:
        return f"{first} {rest[0]}", entry.commands[rest[0]], rest[1:]
    if rest and not rest[0].startswith("-"):
        raise _unknown(rest[0], first)
    if rest and rest[0] in ("-h", "--help"):
        return first, None, []
    if entry.alone is None:
        if rest:
            raise UserError(f"unknown option '{rest[0]}' of {first}: a command comes first; {_listed(first)}")
        return first, None, []
    return f"{first} {entry.alone}", entry.commands[entry.alone], rest


def _moved(word: str, rest: Sequence[str]) -> UserError:
    now = f"{PROGRAM} {MOVED[word]}"
    return UserError(f"{word} is now `{now}`; type: {shlex.join([*now.split(), *rest])}")


def _unknown(word: str, branch: str = "") -> UserError:
    """Names the commands whose last word, or whose name of before, is near to the word, those of the branch first."""
    spelt = {**MOVED, **{name.split()[-1]: name for name in commands()}, **{name: name for name in TREE}}
    inside = {name.split()[-1]: name for name in commands() if name.startswith(f"{branch} ")}
    near = nearest(word, inside, 0.6) or nearest(word, spelt, 0.6)
    meant = " or ".join(f"`{PROGRAM} {name}`" for name in dict.fromkeys({**spelt, **inside}[one] for one in near))
    hint = f"did you mean {meant}?" if near else _listed(branch)
    return UserError(f"unknown command '{f'{branch} {word}'.strip()}': {hint}")


def _listed(branch: str) -> str:
    return f"`{' '.join(filter(None, (PROGRAM, branch)))} --help` lists them"


def help_of(word: str = "") -> RenderableType:
    """The help of a branch, or the first one.

    Args:
        word: of the branch; empty for the whole tree.
    """
    entry = TREE.get(word)
    table = Table.grid(padding=(0, 2), pad_edge=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    if isinstance(entry, Branch):
        about, path = entry.about, f"{PROGRAM} {word}"
        for second, command in entry.commands.items():
            table.add_row(second, _sentence(command))
    else:
        about, path = "Does a policy act better when it reconstructs what its instruction attends to?", PROGRAM
        for first, one in TREE.items():
            if first not in HIDDEN:
                inner = f" [dim]({', '.join(one.commands)})[/]" if isinstance(one, Branch) else ""
                table.add_row(first, (one.about if isinstance(one, Branch) else _sentence(one)) + inner)
    alone = f"`{path}` alone is `{path} {entry.alone}`.\n" if isinstance(entry, Branch) and entry.alone else ""
    more = f"{alone}`{path} COMMAND --help` lists the options of a command."
    own = "" if word else "\n`--import MODULE`, with any command, imports a module that registers your classes."
    first_steps = "" if word else f"\nFirst `{PROGRAM} check`, then `{PROGRAM} study run quick`."
    return Group(f"usage: {path} COMMAND [OPTIONS]", "", about, "", table, "", more + own + first_steps)


def _sentence(command: Command) -> str:
    """The first sentence of a command's docstring."""
    line = (inspect.getdoc(command) or "").splitlines()[0]
    return line.partition(". ")[0].removesuffix(".") + "."
