"""``la-reconvla``: one file for each group of commands, `tree` for what they are called. The rooms below do the work.

A command's options are the parameters of its function and the fields of the dataclasses among them (``options.py``).
A field gives name, type and default; its line in the docstring of the class is the help. The rooms are imported inside
the functions, so that ``check`` works where half of the machine is broken, and help comes at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys

import tyro
from rich.console import Console
from rich.text import Text

from la_reconvla import __version__
from la_reconvla.cli.options import CONFIG, REGISTRY, wrapped_help
from la_reconvla.cli.tree import PROGRAM, find, help_of
from la_reconvla.cli.words import refuse_unknown_suites, refuse_values_of_flags, with_imports
from la_reconvla.errors import UserError


def main() -> None:
    """Entry point: a `UserError` is one line; Ctrl-C prints how to resume."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # the standard library does it for stderr
        sys.stdout.reconfigure(errors="backslashreplace")  # where the locale is not UTF-8
    console, words = Console(stderr=True), sys.argv[1:]
    try:
        if words == ["--version"]:
            print(f"{PROGRAM} {__version__}", flush=True)
            return
        words = with_imports(words)
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        name, command, rest = find(words)
        if command is None:
            asked = words[-1:] in (["-h"], ["--help"])
            (Console() if asked else console).print(help_of(name))
            sys.exit(0 if asked else 2)
        refuse_values_of_flags(rest)
        try:
            with wrapped_help() if {"-h", "--help"} & set(rest) else contextlib.nullcontext():
                tyro.cli(command, prog=f"{PROGRAM} {name}", args=rest, config=CONFIG, registry=REGISTRY)
        except SystemExit as end:
            if end.code == 2:  # it has said which word is missing or wrong
                refuse_unknown_suites(rest)
            raise
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(1)
    except UserError as error:
        console.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("stopped; run the same command again to resume")
        sys.exit(130)


def _unread() -> bool:
    """Whether the reader of stdout, as ``head``, has gone."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
