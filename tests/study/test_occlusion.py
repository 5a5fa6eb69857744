"""What hiding a thing does to the actions: policies by whose construction the answer is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from la_reconvla.analysis.attention_overlap import FrameOverlap
from la_reconvla.analysis.evidence import Evidence
from la_reconvla.analysis.frames import FrameRecord, Occlusion
from la_reconvla.analysis.measures import MapPart, MapPhase
from la_reconvla.analysis.results import Arm
from la_reconvla.analysis.summaries import condition_summary
from la_reconvla.contracts import Batch
from la_reconvla.method.actions import ActionBins, ActionHead
from la_reconvla.study import occlusion as causal
from la_reconvla.study.parts import PARTS

SIDE, BINS = 32, 8
TARGET = np.array([0.0, 0.0, 0.25, 0.25], np.float32)
GOAL = np.array([0.75, 0.0, 1.0, 0.25], np.float32)
TWIN = np.array([0.0, 0.75, 0.25, 1.0], np.float32)
BOXES = np.stack([TARGET, GOAL, TWIN])


class Reads(ActionHead):
    """A policy that acts by the brightness of one box, or by nothing."""

    def __init__(self, box: np.ndarray | None):
        super().__init__(4, ActionBins((-1.0,) * 7, (1.0,) * 7, count=BINS))
        self.box = box

    def features(self, batch: Batch) -> Any:
        return SimpleNamespace(action_states=batch.images, instruction_state=None)

    @property
    def action_head(self) -> Reads:
        return self

    def forward(self, features: Any) -> torch.Tensor:
        action_states = features.action_states
        logits = torch.zeros(len(action_states), 2, 7, BINS)
        if self.box is not None:
            left, top, right, bottom = (round(float(x) * SIDE) for x in self.box)
            bright = action_states[:, :, top:bottom, left:right].float().mean((1, 2, 3)) / 255
            logits[..., 0] = 20 * (bright - 0.5)[:, None, None]
        return logits


def frames(count: int = 3) -> Batch:
    """Dark pictures with a bright target, destination and twin."""
    images = torch.zeros(count, 3, SIDE, SIDE, dtype=torch.uint8)
    for left, top, right, bottom in (BOXES * SIDE).astype(int):
        images[:, :, top:bottom, left:right] = 255
    return Batch(images, ["x"] * count, torch.zeros(count, 2, 7), torch.ones(count, 2, dtype=torch.bool))


def effects(policy: Any, count: int = 3) -> list[dict[MapPart, Occlusion]]:
    draws = [np.random.default_rng(row) for row in range(count)]
    found = causal.effects(policy, frames(count), np.tile(BOXES, (count, 1, 1)), draws)
    assert found is not None
    return found


@pytest.mark.parametrize(("read", "name"), [(TARGET, "target"), (GOAL, "destination"), (TWIN, "distractor")])
def test_a_policy_that_reads_one_thing_moves_when_that_is_hidden_and_else_never(
    read: np.ndarray, name: MapPart
) -> None:
    for record in effects(Reads(read)):
        # Bright: bin 0 for certain. Mean colour (48/255): nearly never bin 0, the other seven alike.
        assert record[name].shift == pytest.approx(1.0, abs=0.01)
        assert record[name].control == pytest.approx(0.0, abs=1e-3)
        for other in set(PARTS) - {name}:
            assert (record[other].shift, record[other].control) == pytest.approx((0.0, 0.0), abs=1e-3), other


def test_a_policy_that_reads_nothing_never_moves() -> None:
    assert all(set(record.values()) == {Occlusion(0.0, 0.0)} for record in effects(Reads(None)))


def test_total_variation_by_hand_counts_existing_steps_only() -> None:
    one = torch.tensor([1.0, 0, 0]).expand(1, 2, 7, 3)
    other = (
        torch.stack([torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 0, 1])]).view(1, 2, 1, 3).expand(1, 2, 7, 3)
    )
    assert causal.moved(one, other, torch.tensor([[1.0, 1]])).item() == pytest.approx(0.75)
    assert causal.moved(one, other, torch.tensor([[1.0, 0]])).item() == pytest.approx(0.5)


def test_what_is_hidden_has_the_mean_colour_and_nothing_else_changes() -> None:
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = causal.occluded(images, np.array([[0.25, 0.5, 0.75, 1.0]], np.float32))
    mean = images.float().mean((2, 3)).round().to(torch.uint8)
    assert (found[0, :, 4:, 2:6] == mean[0, :, None, None]).all()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[4:, 2:6] = False
    assert torch.equal(found[..., outside], images[..., outside])
    assert torch.equal(causal.occluded(images, np.full((1, 4), np.nan, np.float32)), images)


def test_a_box_elsewhere_is_as_large_and_touches_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, top, right, bottom = causal.control_box(TARGET, BOXES, rng)
        assert (right - left, bottom - top) == pytest.approx((0.25, 0.25))
        assert min(left, top) >= 0
        assert max(right, bottom) <= 1
        for box in BOXES:
            assert left >= box[2] or right <= box[0] or top >= box[3] or bottom <= box[1]
    everything = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)
    assert np.isnan(causal.control_box(TARGET, everything, rng)).all()


def test_what_cannot_be_seen_or_decoded_at_once_is_not_measured() -> None:
    hidden = BOXES[None].copy()
    hidden[0, 2] = np.nan
    (record,) = causal.effects(Reads(TWIN), frames(1), hidden, [np.random.default_rng(0)]) or ()  # type: ignore
    assert record["distractor"] == Occlusion(None, None)
    assert record["target"].shift == pytest.approx(0.0, abs=1e-3)
    other: Any = SimpleNamespace(action_head=object())
    assert causal.effects(other, frames(1), hidden, [np.random.default_rng(0)]) is None


def test_effects_and_maps_become_rows_averaged_over_scenes_and_paired_with_their_control() -> None:
    def record(scene: int, phase: MapPhase, target: float, control: float | None, aos: float) -> FrameRecord:
        shown, nothing = FrameOverlap(visible=True, patches=2, aos=aos), FrameOverlap(visible=False, patches=0)
        return FrameRecord(
            seed=0,
            task=0,
            scene=f"s{scene}",
            episode="",
            frame=0,
            action_error=0.1,
            phase=phase,
            maps={"target": {"policy": shown}, "destination": {"policy": nothing}, "distractor": {}},
            hidden={"target": Occlusion(target, control), "destination": Occlusion(None, None)},
        )

    # Scene 0 has three frames and scene 1 one: scenes count, not frames; a frame without control is not paired.
    told = [record(0, "reach", 0.4, 0.1, 0.2), record(0, "reach", 0.6, 0.1, 0.4), record(0, "carry", 0.9, None, 0.6)]
    told.append(record(1, "reach", 0.1, 0.1, 0.9))
    found = condition_summary(Arm("C1", "", None, None, None, True), Evidence(frames=told))
    effects = {effect.occluded: effect for effect in found.causal}
    assert set(effects) == {"target", "control"}
    assert effects["target"].shift.mean == pytest.approx((0.5 + 0.1) / 2)
    assert effects["target"].over_control is not None
    assert effects["target"].over_control.mean == pytest.approx((0.4 + 0.0) / 2)
    assert effects["control"].shift.mean == pytest.approx(0.1)
    assert effects["control"].over_control is None
    rows = {(row.part, row.phase, row.map): row.means for row in found.maps}
    assert set(rows) == {("target", phase, "policy") for phase in ("all", "reach", "carry")}
    assert rows["target", "all", "policy"].aos == pytest.approx((0.4 + 0.9) / 2)
    assert rows["target", "reach", "policy"].aos == pytest.approx((0.3 + 0.9) / 2)
    assert rows["target", "reach", "policy"].frames == 3
