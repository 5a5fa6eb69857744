"""One held-out episode under every arm: the same moments for all, and pictures that show what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_train import DENOISER, HEAD, train_tiny, write_demonstrations

from helpers import TINY
from la_reconvla import drawing as figures
from la_reconvla.analysis.results import Timeline
from la_reconvla.conditions import C1, C4, R1, Condition
from la_reconvla.data.boxes import Masks
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.method.mask import masked_count
from la_reconvla.study.pictures import SIDE, episode_indices, timelines

COUNT = 4


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder = write_demonstrations(tmp_path_factory.mktemp("demonstrations"))
    return Samples(open_demonstrations(folder), TINY.image_size, TINY.chunk)


@pytest.fixture(scope="module")
def arms(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Condition, Path]]:
    folder, runs = samples.demonstrations.episodes[0].path.parent, tmp_path_factory.mktemp("runs")
    chosen = [arm.with_reconstruction_head(HEAD, DENOISER) for arm in (C1, C4, R1)]
    return [(arm, train_tiny(folder, runs / arm.id, arm)) for arm in chosen]


@pytest.fixture(scope="module")
def drawn(samples, arms, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Timeline]]:
    study = tmp_path_factory.mktemp("study")
    found = timelines(study, arms, samples, Masks(), count=COUNT)
    return study, {line.condition: line for line in found}


def picture(study: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(study / name).convert("RGB")).astype(int)


def test_all_arms_show_one_episode_at_the_same_steps(samples: Samples, drawn) -> None:
    study, found = drawn
    assert list(found) == ["C1", "C4", "R1"]
    first = samples.demonstrations.episodes[0]
    assert {line.episode for line in found.values()} == {first.name}
    assert {line.instruction for line in found.values()} == {first.instruction}
    steps = found["C1"].steps
    assert {line.steps for line in found.values()} == {steps}
    assert steps == tuple(sorted(set(steps)))
    assert (len(steps), steps[0], steps[-1]) == (min(COUNT, len(first.actions)), 0, len(first.actions) - 1)
    for line in found.values():
        assert line.frames == found["C1"].frames
        for paths in (line.frames, line.attention, line.reconstruction):
            assert len(paths) in (0, len(steps))
            assert all(max(picture(study, path).shape[:2]) <= SIDE for path in paths)
    assert found["C1"].reconstruction == ()
    assert len(found["R1"].reconstruction) == len(steps)


def test_the_camera_row_is_what_the_camera_saw(samples: Samples, drawn) -> None:
    study, found = drawn
    images = samples.batch(episode_indices(samples, COUNT)).images.permute(0, 2, 3, 1).numpy().astype(int)
    for path, image in zip(found["C1"].frames, images, strict=True):
        assert np.abs(picture(study, path) - image).mean() < 20  # noise in 96 colours; other noise is 85 away


def test_a_reconstruction_differs_only_where_the_mask_hides(samples: Samples, drawn) -> None:
    """Patches that the mask leaves are those of the frame; as many as the method says are painted."""
    study, found = drawn
    rows, columns = TINY.image_size // TINY.patch, TINY.image_size // TINY.patch
    images = samples.batch(episode_indices(samples, COUNT)).images.permute(0, 2, 3, 1).numpy().astype(int)
    for path, image in zip(found["C4"].reconstruction, images, strict=True):
        apart = np.abs(picture(study, path) - image).mean(-1).reshape(rows, TINY.patch, columns, TINY.patch)
        changed = apart.mean((1, 3)) > 25
        assert changed.sum() == masked_count(0.25, rows * columns)


def test_what_an_arm_must_be_told_is_asked_for(samples: Samples, arms, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="R1 is told where the target is"):
        list(timelines(tmp_path, arms, samples))


def test_edges_run_along_the_inside_of_the_mask() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    mask = np.array([True, False, False, False])
    found = figures.edged(image, mask, (2, 2))[..., 0] == 255
    assert found[0, :8].all()
    assert found[7, :8].all()
    assert found[:8, 0].all()
    assert found[:8, 7].all()
    assert found.sum() == 4 * 7  # the square's rim and nothing inside or outside
    everything = figures.edged(image, np.ones(4, bool), (2, 2))[..., 0] == 255
    assert everything.sum() == 4 * 15
