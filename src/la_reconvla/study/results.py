"""`results.json` on disk: writing it, and reading it with a check of every field."""

from __future__ import annotations

from pathlib import Path

from la_reconvla.analysis.results import Results
from la_reconvla.layout import require_schema
from la_reconvla.storage import read_json, write_json
from la_reconvla.typed_json import parse


def write_results(path: Path | str, results: Results) -> None:
    """Write `results` as JSON, atomically."""
    write_json(path, results)


def read_results(path: Path | str) -> Results:
    """Read and check a `results.json`.

    Raises:
        UserError: the file is missing, not JSON, of another schema, or has a field that is missing or of another type;
            the message names the field.
    """
    return parse(Results, require_schema(read_json(path), str(path)), str(path))
