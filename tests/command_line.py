"""The command line, called in this process."""

from __future__ import annotations

import sys

import pytest

from la_reconvla import cli


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of ``la-reconvla`` with these words."""
    monkeypatch.setattr(sys, "argv", ["la-reconvla", *map(str, words)])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err
