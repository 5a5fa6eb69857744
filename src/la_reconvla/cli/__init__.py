"""``la-reconvla``: one file a group of commands. What they do lives in the rooms below.

A command's options are the parameters of its function and the fields of the dataclasses among them (``options.py``).
A field gives name, type and default; its line in the docstring of the class is the help. The rooms are imported inside
the functions, so that ``doctor`` works where half of the machine is broken, and help comes at once.
"""

from __future__ import annotations

import sys

import tyro
from rich.console import Console
from rich.text import Text

from la_reconvla.cli.attention import look, words
from la_reconvla.cli.data import annotate, collect, scenes
from la_reconvla.cli.machine import bench, doctor, plan
from la_reconvla.cli.policies import compare, evaluate, export, push
from la_reconvla.cli.studies import ablate, power, report
from la_reconvla.cli.training import pretrain, train
from la_reconvla.errors import UserError

app = tyro.extras.SubcommandApp()
for command in (
    *(doctor, collect, annotate, train, evaluate, compare, ablate, look, scenes, pretrain, words, plan, power, bench),
    *(export, push, report),
):
    app.command(command)


def main() -> None:
    """Entry point: a `UserError` is one line, Ctrl-C says how to go on."""
    console = Console(stderr=True)
    try:
        app.cli(prog="la-reconvla", description="Does a policy act better when it reconstructs what its words look at?")
    except UserError as error:
        console.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where it was")
        sys.exit(130)
