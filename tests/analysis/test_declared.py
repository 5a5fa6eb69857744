"""What a study judges is declared in a file before it runs, and may not change after that."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from la_reconvla.analysis.declaration import DECLARED, PACKAGED, Declaration, declared_in
from la_reconvla.analysis.results import Study
from la_reconvla.errors import UserError
from la_reconvla.study.requirements import require_declared


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(DECLARED.text), **fields})


def test_the_packages_own_declaration() -> None:
    assert ("C4", "C2", "tsr") in DECLARED.family
    assert DECLARED.equivalence == ("C4", "R1", "tsr")
    assert hashlib.sha256(PACKAGED.read_bytes()).hexdigest() == DECLARED.hash


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold exactly"),
        (changed(extra=1), "must hold exactly"),
        (changed(alpha=5), "alpha must be a share"),
        (changed(alpha=0.01), "alpha must be 0.05"),
        (changed(claims={"H9": "x"}), "claims must be about"),
        (changed(claims={"C4>C9": "x"}), "the claim C4>C9 is judged by"),
        (changed(claims={"C4>": "x"}), "which family must name"),
        (changed(family=[["C4", "C22", "tsr"]]), "unknown condition 'C22'"),
        (changed(family=[["C4", "C2", "success"]]), "unknown metric 'success'"),
        (changed(family=[["C4", "C2"]]), "two arms and a metric"),
        (changed(family=[["C4", "C2", "tsr"]] * 2), "is listed twice"),
    ],
)
def test_what_is_no_declaration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        Declaration.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        Declaration.read(tmp_path / "none.json")


def test_a_study_keeps_what_it_began_with() -> None:
    path, other = Path("runs/x/study.json"), Declaration.parse(changed(same_within=0.01), "other")
    begun = {"hypotheses": DECLARED.text, "hypotheses_hash": DECLARED.hash}
    require_declared(begun, None, path)
    require_declared(begun, DECLARED, path)
    with pytest.raises(UserError, match="begun with other hypotheses"):
        require_declared(begun, other, path)
    with pytest.raises(UserError, match="changed after the study began"):
        require_declared({**begun, "hypotheses": other.text}, None, path)
    require_declared({}, None, path)  # begun before studies declared anything
    with pytest.raises(UserError, match="began without a declaration"):
        require_declared({}, other, path)


def test_results_are_judged_by_what_the_study_declared() -> None:
    other = changed(same_within=0.1)
    assert declared_in(Study(preset="x", hypotheses=other)).same_within == 0.1
    assert declared_in(Study(preset="x")) is DECLARED
