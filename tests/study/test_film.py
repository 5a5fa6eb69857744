"""Films side by side: read back by Pillow, on arrays and on the real simulator."""

import numpy as np
import pytest
from PIL import Image

from la_reconvla.drawing import captioned, write_gif
from la_reconvla.errors import UserError
from la_reconvla.study.film import EVERY, HOLD, film, side_by_side
from la_reconvla.study.options import FilmOptions


def frames(count, value, side=8):
    return [np.full((side, side, 3), value + i, np.uint8) for i in range(count)]


def test_a_film_that_ends_shows_its_last_picture_until_all_have_ended():
    rows = side_by_side([frames(2, 10), frames(5, 100)])
    assert len(rows) == 5 + HOLD
    assert {row.shape for row in rows} == {(8, 8 + 4 + 8, 3)}
    assert [int(row[0, 0, 0]) for row in rows[:5]] == [10, 11, 11, 11, 11]
    assert [int(row[0, -1, 0]) for row in rows] == [100, 101, 102, 103, *[104] * (1 + HOLD)]


def test_a_gif_keeps_its_pictures_their_number_and_pace(tmp_path):
    written = [np.zeros((16, 24, 3), np.uint8) for _ in range(4)]
    for i, picture in enumerate(written):
        picture[:, 6 * i : 6 * i + 6] = (250, 40 * i, 10)
    write_gif(tmp_path / "a.gif", written, fps=10)
    with Image.open(tmp_path / "a.gif") as read:
        assert (read.n_frames, read.info["duration"], read.info["loop"]) == (4, 100, 0)
        for i, picture in enumerate(written):
            read.seek(i)
            assert np.abs(np.asarray(read.convert("RGB")).astype(int) - picture).max() < 8


def test_a_caption_leaves_the_picture_as_it_is():
    picture = np.random.default_rng(0).integers(0, 255, (10, 90, 3), dtype=np.uint8)
    told = captioned(picture, "C4: attention")
    assert np.array_equal(told[-10:], picture)
    assert (told[:-10] < 100).any(), "letters"
    assert np.array_equal(captioned(picture, "")[:-10], np.full((20, 90, 3), 255, np.uint8))


def test_what_cannot_be_filmed_is_refused_before_the_simulator(tmp_path):
    with pytest.raises(UserError, match=r"end in \.gif"):
        film(["expert"], tmp_path / "a.mp4", FilmOptions())
    with pytest.raises(UserError, match="name the runs"):
        film([], tmp_path / "a.gif", FilmOptions())


@pytest.mark.sim
def test_the_expert_is_filmed_to_its_success(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (record,) = film(["expert"], tmp_path / "a.gif", FilmOptions(placement="official", size=64))
    assert record.success
    with Image.open(tmp_path / "a.gif") as read:
        assert read.size == (64, 64 + 2 * 20), "a caption for the policy and one for the instruction"
        count = -(-record.steps // EVERY) + 1 + HOLD  # pictures; equal ones become one that stays longer
        assert sum((read.seek(i), read.info["duration"])[1] for i in range(read.n_frames)) == 100 * count
        shown = [np.asarray((read.seek(i), read.convert("RGB"))[1])[40:].astype(int) for i in (0, read.n_frames - 1)]
        assert np.abs(shown[0] - shown[1]).mean() > 2, "the bowl has moved, and the arm"
