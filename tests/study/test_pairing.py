"""Arms of one seed are comparable only if they began alike and saw the same; what differs is named and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from la_reconvla.conditions import C1, C2, C4, NO_IMAGE, Condition
from la_reconvla.errors import UserError
from la_reconvla.storage import append_jsonl
from la_reconvla.study.pairing import pairings


def study(folder: Path, **changed: dict[str, Any]) -> list[tuple[Condition, int, Path]]:
    """Logs of C1, C2, C4 and the blind arm with two seeds; `changed` replaces hashes of one arm with seed 1."""
    runs = []
    for seed in (0, 1):
        for arm in (C1, C2, C4, NO_IMAGE):
            hashes = {"backbone": f"b{seed}", "action_head": f"h{seed}", "batches": f"s{seed}"}
            if arm is NO_IMAGE:
                hashes["backbone"] = "of no image"
            hashes |= changed.get(arm.id.replace("-", "_"), {}) if seed else {}
            path = folder / arm.id / f"seed{seed}" / "metrics.jsonl"
            append_jsonl(path, {"step": 0, "start": {key: hashes[key] for key in ("backbone", "action_head")}})
            append_jsonl(path, {"step": 10, "loss": 1.0, "batches": "of ten steps"})
            append_jsonl(path, {"step": 20, "loss": 1.0, "batches": hashes["batches"]})
            runs.append((arm, seed, path.parent))
    return runs


def test_arms_that_began_alike_are_paired(tmp_path: Path) -> None:
    first, second = pairings(study(tmp_path), tmp_path)
    assert first.arms == second.arms == ("C1", "C2", "C4", "no-image")
    assert (first.seed, first.backbone, first.action_head, first.batches) == (0, "b0", "h0", "s0")
    assert (second.seed, second.backbone, second.action_head, second.batches) == (1, "b1", "h1", "s1")


@pytest.mark.parametrize(
    ("arm", "part", "said"),
    [
        ("C2", "backbone", r"start from equal backbone weights \(C1, C4: b1; C2: other\)"),
        ("C4", "action_head", r"start from equal weights of the action head \(C1, C2, no-image: h1; C4: other\)"),
        ("C1", "batches", r"see equal batches \(C1: other; C2, C4, no-image: s1\)"),
        ("no_image", "action_head", r"action head \(C1, C2, C4: h1; no-image: other\)"),
        ("no_image", "batches", r"see equal batches \(C1, C2, C4: s1; no-image: other\)"),
    ],
)
def test_an_arm_that_differs_is_named_with_what_to_do(tmp_path: Path, arm: str, part: str, said: str) -> None:
    runs = study(tmp_path, **{arm: {part: "other"}})
    with pytest.raises(UserError, match=f"the arms of seed 1 do not {said}" if arm != "no_image" else said) as error:
        pairings(runs, tmp_path)
    assert f"delete every folder named seed1 below {tmp_path} and run the same command" in str(error.value)


def test_a_log_that_does_not_say_what_it_began_with_is_refused(tmp_path: Path) -> None:
    runs = study(tmp_path)
    (runs[0][2] / "metrics.jsonl").write_text('{"step": 20, "batches": "s0"}\n')
    with pytest.raises(UserError, match=r"lacks what the run began with \(backbone, action_head\): delete .*C1/seed0"):
        pairings(runs, tmp_path)
