"""Films outside of the page, read back by Pillow and by Rerun's reader; and counts that are counted again."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from test_results import study_results
from tiny_films import COUNTS, SIZE, STARTS, film_data, looks, target, write_filmed_study

from la_reconvla import layout
from la_reconvla.analysis.film_data import FilmData, Patch, encoded
from la_reconvla.episodes import EpisodeRecord, Label, StartName, append_episodes
from la_reconvla.errors import UserError
from la_reconvla.report.film_exports import write_film_gif, write_recording
from la_reconvla.report.page import Shelf
from la_reconvla.report.player import playlist
from la_reconvla.report.recount import recounted
from la_reconvla.storage import write_json
from la_reconvla.study.film import HOLD
from la_reconvla.study.results import results_of


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_filmed_study(tmp_path_factory.mktemp("runs") / "study")


def test_the_gif_shows_two_arms_side_by_side(study: Path, tmp_path: Path) -> None:
    with Image.open(write_film_gif(study, tmp_path / "a.gif")) as read:
        assert read.size == (2 * SIZE + 4, SIZE + 2 * 20)
        shown = sum((read.seek(i), read.info["duration"])[1] for i in range(read.n_frames))
        assert shown == 100 * (max(COUNTS.values()) + HOLD), "twice real time"
        read.seek(0)
        first = np.asarray(read.convert("RGB")).astype(int)[40:]
        row, column = 16 + 8, 16 + 8  # the middle of the patch that has the attention, the brightest of each film
        assert first[row, column].sum() > first[50, 50].sum() + 100
        assert first[row, SIZE + 4 + column].sum() > first[50, SIZE + 4 + 50].sum() + 100


def test_what_cannot_be_written_is_said_before_anything_is(study: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    write_json(bare / "results.json", study_results())
    for write, good, bad in ((write_film_gif, "a.gif", "a.mp4"), (write_recording, "a.rrd", "a.gif")):
        with pytest.raises(UserError, match="let it end in"):
            write(study, tmp_path / bad)
        with pytest.raises(UserError, match="has no films"):
            write(bare, tmp_path / good)
    assert {path.name for path in tmp_path.iterdir()} == {"bare"}


def test_a_film_that_is_missing_can_be_drawn_again_only_from_its_track(tmp_path: Path) -> None:
    study = write_filmed_study(tmp_path / "study")
    video = next(v for v in results_of(study).videos if v.start == STARTS[0] and v.condition == "C1")
    (study / video.path).unlink()
    with pytest.raises(UserError, match=r"missing: its track is not there .* in another folder"):
        write_film_gif(study, tmp_path / "a.gif")
    track = study / "C1" / "seed0" / "tracks" / f"{Path(video.path).stem.removeprefix('C1_')}.npz"
    track.parent.mkdir(parents=True)
    track.touch()
    with pytest.raises(UserError, match=r"missing: the command of its study, `.*`, draws it again"):
        write_film_gif(study, tmp_path / "a.gif")


def test_without_rerun_it_says_what_to_install(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(UserError, match=r"pip install -e .*\[rerun\]"):
        write_recording(study, tmp_path / "a.rrd")


def test_reruns_own_reader_finds_everything_on_one_timeline(study: Path, tmp_path: Path) -> None:
    chunk = pytest.importorskip("rerun.chunk", reason="no reader of recordings: pip install 'rerun-sdk>=0.41'")
    store = chunk.RrdReader(str(write_recording(study, tmp_path / "a.rrd"))).stream()
    rows: dict[str, dict[int, list]] = {}
    static = set()
    for part in store.to_chunks():
        batch = part.to_record_batch()
        if part.is_static:
            static.add(part.entity_path)
            continue
        assert "control_step" in part.timeline_names, part.entity_path
        value = next((name for name in batch.schema.names if name.endswith(("scalars", "text"))), None)
        for i, step in enumerate(batch.column("control_step").to_pylist()):
            found = batch.column(value)[i].as_py() if value else []
            rows.setdefault(part.entity_path, {}).setdefault(int(step), []).extend(found)
    for start in STARTS:
        for arm, count in COUNTS.items():
            entity, data = f"/{start.replace('/', '_')}/{arm}", film_data(arm, start == STARTS[0] and arm == "C4")
            assert f"{entity}/camera" in static, "the film itself"
            assert {step: value[0] for step, value in rows[f"{entity}/distance"].items()} == dict(
                zip(data.steps, data.distance, strict=True)
            )
            assert len(rows[f"{entity}/camera/attention"]) == len(rows[f"{entity}/camera/target"]) == count
            moved = {step: value[0] for step, value in rows[f"{entity}/action/x"].items()}
            assert moved == pytest.approx({i: 0.1 * i for i in range(data.steps[-1])})
            assert rows[f"{entity}/stages"] == {step: [name] for name, step in data.stages.items()}


def test_masks_and_maps_come_back() -> None:
    rng = np.random.default_rng(0)
    for mask in (target(3), rng.random((SIZE, SIZE)) > 0.9, np.zeros((SIZE, SIZE), bool), np.eye(SIZE, dtype=bool)):
        assert np.array_equal(Patch.of(mask).mask(SIZE), mask)
    data = film_data("C4", True)
    assert data.most == pytest.approx(16 * 40 / 55), "sixteen patches, one with 40 of 55"
    assert data.maps() == pytest.approx(looks("C4") * 16 / looks("C4").sum(1, keepdims=True), abs=data.most / 255)
    assert encoded(np.zeros((1, 4)))[1] == 1, "no attention at all is equal shares"


def test_film_data_comes_back_from_its_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", film_data("C1", False).to_json())
    assert FilmData.read(tmp_path / "a.json") == film_data("C1", False)


def test_a_start_that_does_not_fit_is_left_out_and_counted(study: Path) -> None:
    results = results_of(study)
    sizes = [4 * (study / video.path).stat().st_size // 3 for video in results.videos]
    whole = playlist(results, Shelf(study)).scenes
    assert [s.start for s in whole] == list(STARTS)
    needed = sum(sizes[:2]) + sum(len(escape(film.text)) for film in whole[0].films)
    for room, starts in ((needed + 10, [STARTS[0]]), (needed - 10, [STARTS[1]])):
        tight = playlist(results, shelf := Shelf(study, room))
        assert [s.start for s in tight.scenes] in (starts, []), "one that does not fit takes no room"
        assert tight.left_out == 2 - len(tight.scenes)
        assert shelf.left >= 0
    assert [s.start for s in playlist(results, Shelf(study, needed)).scenes] == [STARTS[0]]


@pytest.mark.parametrize("what", ["path", "data"])
def test_a_start_whose_film_lacks_a_file_is_left_out_and_counted(study: Path, tmp_path: Path, what: str) -> None:
    copy = Path(shutil.copytree(study, tmp_path / "study"))
    results = results_of(copy)
    (copy / getattr(results.videos[0], what)).unlink()
    found = playlist(results, Shelf(copy))
    assert ([s.start for s in found.scenes], found.left_out) == ([STARTS[1]], 1)
    elsewhere = [replace(video, **{what: "../elsewhere"}) for video in results.videos]
    with pytest.raises(UserError, match="outside of"):
        playlist(replace(results, videos=elsewhere), Shelf(copy))


def test_counts_are_those_of_the_episodes(tmp_path: Path) -> None:
    """The page says what is counted again from episodes.jsonl, and which number differs from it."""
    results = study_results()
    condition = results.conditions[0]
    cell = condition.cells[0]
    assert cell.tsr is not None
    assert recounted(results, tmp_path) == (0, [])
    folder, label = layout.cell(tmp_path, condition.id, cell.seed), Label(condition.id, cell.seed)
    names = [StartName("s", 0, "wide", "test", i, "lift it", "bowl_1") for i in range(cell.tsr.episodes)]
    records = [EpisodeRecord(label, name, i < cell.tsr.successes, 9, 1.0) for i, name in enumerate(names)]
    append_episodes(folder, records[:-1])
    assert len(recounted(results, tmp_path)[1]) == 1
    append_episodes(folder, records[-1:])
    assert recounted(results, tmp_path) == (1, [])
    later = EpisodeRecord(label, replace(names[0], index=cell.tsr.episodes), False, 9, 1.0)
    append_episodes(folder, [later])
    assert recounted(results, tmp_path) == (0, []), "another command has begun more: nothing differs"
    (folder / layout.EPISODES).unlink()
    append_episodes(folder, records)
    more = replace(cell, tsr=replace(cell.tsr, successes=cell.tsr.successes + 1))
    wrong = replace(results, conditions=(replace(condition, cells=(more, *condition.cells[1:])),))
    n = cell.tsr.episodes
    assert recounted(wrong, tmp_path)[1] == [
        f"{condition.id} seed {cell.seed}: {cell.tsr.successes + 1} of {n} here, {cell.tsr.successes} of {n} in "
        "episodes.jsonl"
    ]
