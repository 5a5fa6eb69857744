"""Samples: what a batch holds, in which order batches come, and which patches an object covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hdf5 import make_header, make_official, make_recording

from la_reconvla.contracts import Batch
from la_reconvla.data.boxes import Masks
from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_writer import write_file
from la_reconvla.data.samples import Samples, batch_indices, pad_actions, patch_coverage, proprio_view, resize, shifted
from la_reconvla.errors import UserError


@pytest.fixture
def demonstrations(tmp_path: Path) -> Demonstrations:
    """Three episodes of two tasks with pictures at every second step."""
    recordings = [make_recording(0, length=7, stride=2), make_recording(1, length=4, stride=2)]
    write_file(tmp_path / "a_demo.hdf5", make_header(0, stride=2), recordings)
    write_file(tmp_path / "b_demo.hdf5", make_header(1, stride=2), [make_recording(2, 1, length=5, stride=2)])
    return open_demonstrations(tmp_path)


@pytest.mark.parametrize("stride", [None, 2, 4])
def test_a_batch_holds_what_the_files_hold(demonstrations: Demonstrations, stride: int | None) -> None:
    chunk, every = 3, stride or 2
    samples = Samples(demonstrations, 8, chunk, stride=stride, wrist=True, proprio="all")
    expected = [(e, t) for e in demonstrations.episodes for t in range(0, len(e.actions), every)]
    assert len(samples) == len(expected)
    order = np.random.default_rng(0).permutation(len(samples))
    batch = samples.batch(order)
    for row, (episode, step) in enumerate(expected[i] for i in order):
        assert samples.origin(order[row]) == (episode, step)
        np.testing.assert_array_equal(batch.images[row].numpy().transpose(1, 2, 0), episode.frames()[step // 2])
        assert batch.wrist is not None
        assert batch.proprio is not None
        np.testing.assert_array_equal(batch.wrist[row].numpy().transpose(1, 2, 0), episode.wrist()[step // 2])
        np.testing.assert_array_equal(batch.proprio[row].numpy(), episode.proprio()[step])
        assert batch.instructions[row] == episode.instruction
        for ahead in range(chunk):
            inside = step + ahead < len(episode.actions)
            idle = np.array([0, 0, 0, 0, 0, 0, episode.actions[-1, 6]], np.float32)
            wanted = episode.actions[step + ahead] if inside else idle
            np.testing.assert_array_equal(batch.actions[row, ahead].numpy(), wanted)
            assert bool(batch.valid[row, ahead]) == inside
    assert (batch.images.dtype, batch.actions.dtype, batch.valid.dtype) == (torch.uint8, torch.float32, torch.bool)


def test_what_was_not_asked_for_is_not_there(demonstrations: Demonstrations) -> None:
    batch = Samples(demonstrations, 8, 2).batch(np.arange(3))
    assert batch.wrist is None
    assert batch.proprio is None
    assert batch.gaze is None


def test_only_the_gripper(demonstrations: Demonstrations) -> None:
    batch = Samples(demonstrations, 8, 2, proprio="gripper").batch(np.arange(4))
    fingers = demonstrations.episodes[0].proprio()[::2, 6:]
    assert batch.proprio is not None
    np.testing.assert_array_equal(batch.proprio.numpy(), fingers[:, :1] - fingers[:, 1:])
    assert proprio_view(np.arange(8, dtype=np.float32), "gripper").shape == (1,)


def test_batches_do_not_share_memory_with_the_samples(demonstrations: Demonstrations) -> None:
    samples = Samples(demonstrations, 8, 2)
    before = samples.batch(np.arange(2)).images.clone()
    samples.batch(np.arange(2)).images.zero_()
    assert torch.equal(samples.batch(np.arange(2)).images, before)


def test_official_files_have_samples_but_no_gaze(tmp_path: Path) -> None:
    make_official(tmp_path / "put_demo.hdf5")
    found = open_demonstrations(tmp_path)
    assert len(Samples(found, 16, 4, wrist=True, proprio="all")) == 10
    with pytest.raises(UserError, match="has no 'instances/map'"):
        Samples(found, 16, 4, gaze=Masks())


def test_what_does_not_fit_is_refused(demonstrations: Demonstrations) -> None:
    with pytest.raises(UserError, match="not a multiple"):
        Samples(demonstrations, 8, 2, stride=3)
    with pytest.raises(UserError, match="at least 1"):
        Samples(demonstrations, 8, 0)
    with pytest.raises(UserError, match="did you mean gripper"):
        Samples(demonstrations, 8, 2, proprio="griper")  # type: ignore[arg-type]


def test_quantiles_are_of_all_actions(demonstrations: Demonstrations) -> None:
    low, high = Samples(demonstrations, 8, 2, stride=4).quantiles()
    every = np.sort(np.concatenate([e.actions for e in demonstrations.episodes]).astype(np.float64), axis=0)
    place = 0.01 * (len(every) - 1)  # linear interpolation between order statistics
    np.testing.assert_allclose(low, every[0] + place * (every[1] - every[0]))
    np.testing.assert_allclose(high, every[-1] - place * (every[-1] - every[-2]))


def test_resizing_is_antialiased_and_otherwise_leaves_pictures_alone() -> None:
    checkers = np.indices((1, 64, 64))[1:].sum(0) % 2 * 255
    pictures = np.repeat(checkers[..., None], 3, axis=-1).astype(np.uint8)
    assert resize(pictures, 64) is pictures
    small = resize(pictures, 16).astype(float)
    assert np.abs(small - 127.5).max() < 12  # picking every fourth pixel would give 0 or 255
    constant = np.full((2, 30, 30, 3), 77, np.uint8)
    assert (resize(constant, 14) == 77).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    data=st.data(),
)
def test_coverage_equals_counting_on_a_fine_grid(rows, columns, height, width, data) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(1, height, width)
    fine = np.kron(mask[0], np.ones((rows, columns)))  # each pixel cut so that both grids divide it
    counted = fine.reshape(rows, height, columns, width).mean((1, 3)).ravel()
    np.testing.assert_allclose(patch_coverage(mask, (rows, columns))[0], counted, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50), epochs=st.integers(1, 4), seed=st.integers(0, 2**62))
def test_each_epoch_is_a_permutation(n: int, batch: int, epochs: int, seed: int) -> None:
    steps = -(-epochs * n // batch)
    seen = np.concatenate([batch_indices(seed, step, batch, n) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    np.testing.assert_array_equal(seen[-batch:], batch_indices(seed, steps - 1, batch, n))  # a resumed run


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(batch_indices(seed, epoch, 50, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(length=st.integers(1, 5), chunk=st.integers(1, 6))
def test_padding_keeps_the_gripper_and_stops_the_arm(length: int, chunk: int) -> None:
    actions = np.random.default_rng(length).uniform(-1, 1, (length, 7)).astype(np.float32)
    padded = pad_actions(actions, chunk)
    assert padded.shape == (length + chunk - 1, 7)
    np.testing.assert_array_equal(padded[:length], actions)
    assert (padded[length:, :6] == 0).all()
    assert (padded[length:, 6] == actions[-1, 6]).all()


@given(pixels=st.integers(1, 5), seed=st.integers(0, 99))
def test_shifted_pictures_equal_numpys_padding_and_cropping(pixels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    images, wrist = (torch.from_numpy(draw.integers(0, 256, (4, 3, 9, 9), dtype=np.uint8)) for _ in range(2))
    batch = Batch(images, ["a"] * 4, torch.rand(4, 2, 7), torch.ones(4, 2, dtype=torch.bool), wrist=wrist)
    found = shifted(batch, pixels, torch.Generator().manual_seed(seed))
    assert found.wrist is not None
    assert found.actions is batch.actions
    for before, wrist_before, after, wrist_after in zip(images, wrist, found.images, found.wrist, strict=True):
        edges = ((0, 0), (pixels, pixels), (pixels, pixels))
        padded, wrist_padded = (np.pad(p.numpy(), edges, mode="edge") for p in (before, wrist_before))
        places = [
            (r, c)
            for r in range(2 * pixels + 1)
            for c in range(2 * pixels + 1)
            if np.array_equal(padded[:, r : r + 9, c : c + 9], after)
        ]
        assert places, "no crop of the padded picture"
        assert any(np.array_equal(wrist_padded[:, r : r + 9, c : c + 9], wrist_after) for r, c in places)


def test_shifts_differ_between_samples_and_reach_both_ends() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).expand(512, 3, 32, 32)
    batch = Batch(ramp, ["a"] * 512, torch.zeros(512, 1, 7), torch.ones(512, 1, dtype=torch.bool))
    middle = shifted(batch, 3, torch.Generator().manual_seed(0)).images[:, 0, 16, 16].numpy().astype(int)
    assert sorted(set(middle - 16)) == [-3, -2, -1, 0, 1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_boxes_move_with_what_they_hold(data) -> None:
    """A rectangle that is drawn, moved and looked for: its box says where it is, cut off at the edges."""
    height, width, pixels = (data.draw(st.integers(*span)) for span in ((8, 20), (8, 20), (0, 6)))
    left, right = sorted(data.draw(st.lists(st.integers(1, width - 1), min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(data.draw(st.lists(st.integers(1, height - 1), min_size=2, max_size=2, unique=True)))
    images = torch.zeros(8, 3, height, width, dtype=torch.uint8)
    images[:, :, top:bottom, left:right] = 255
    box = torch.tensor([left / width, top / height, right / width, bottom / height])
    batch = Batch(images, ["a"] * 8, torch.zeros(8, 1, 7), torch.ones(8, 1, dtype=torch.bool), gaze=box.repeat(8, 1))
    found = shifted(batch, pixels, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    assert found.gaze is not None
    for image, moved in zip(found.images, found.gaze.tolist(), strict=True):
        rows, columns = np.nonzero(image[0].numpy())
        if len(rows):
            seen = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
            np.testing.assert_allclose(moved, seen, atol=1e-6)
        else:
            assert moved[0] == pytest.approx(moved[2], abs=1e-6) or moved[1] == pytest.approx(moved[3], abs=1e-6)
        assert all(0 <= value <= 1 for value in moved)
    assert torch.equal(batch.gaze, box.repeat(8, 1))
