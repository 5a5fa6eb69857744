"""`results.json` on disk: what it holds, and reading it with a check of every field."""

from __future__ import annotations

from pathlib import Path

from la_reconvla import layout
from la_reconvla.analysis.results import Results
from la_reconvla.errors import UserError
from la_reconvla.layout import require_schema
from la_reconvla.storage import read_json
from la_reconvla.study.begun import read_begun
from la_reconvla.typed_json import parse


def results_of(study: Path | str) -> Results:
    """The results of a study.

    Raises:
        UserError: the folder is no study, or one without results yet, with the command that makes them; or as
            `read_results`.
    """
    study = Path(study)
    if not (study / layout.RESULTS).exists():
        if (study / layout.STUDY).exists():
            command = read_begun(study / layout.STUDY).command or "la-reconvla study run"
            raise UserError(f"{study} is a study that has no results yet: finish it with `{command}`")
        raise UserError(
            f"{study} is no study: make one there with `la-reconvla study run quick --out {study}`"
            + layout.meant(study, layout.RESULTS)
        )
    return read_results(study / layout.RESULTS)


def read_results(path: Path | str) -> Results:
    """Read and check a `results.json`.

    Raises:
        UserError: the file is missing, not JSON, of another schema, or has a field that is missing or of another type;
            the message names the field.
    """
    return parse(Results, require_schema(read_json(path), str(path)), str(path))
