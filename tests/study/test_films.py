"""Films from recorded states: the very pictures of the run, drawn once, from what an evaluation leaves."""

from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest

from la_reconvla.analysis.choosing import Chosen
from la_reconvla.analysis.film_data import FilmData
from la_reconvla.episodes import EpisodeRecord, Label, StartName, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.sim.libero import LiberoEnv
from la_reconvla.sim.policies import Scripted
from la_reconvla.sim.rollout import EnvSettings, run_episode
from la_reconvla.sim.tasks import load_task, official_start
from la_reconvla.sim.track import Track
from la_reconvla.study import evaluate as evaluating
from la_reconvla.study import films as filming
from la_reconvla.study import runs
from la_reconvla.study.evaluate import Evaluation, evaluate
from la_reconvla.study.films import SIZE, Cast, evaluation_films, films, pictures_of, redrawn


@pytest.mark.sim
def test_pictures_drawn_from_states_are_those_of_the_run():
    start, settings = (
        official_start(load_task("libero_spatial", 0), 0),
        EnvSettings(image_size=64, quality="fast", max_steps=10),
    )
    seen = []

    class Seeing(Track):
        def keep(self, env, step):
            super().keep(env, step)
            seen.append(env.observe().image)

    env = settings.build()
    track = Seeing()
    run_episode(env, Scripted().build(), start, track)
    fresh = settings.build()
    fresh.reset(start)
    drawn = list(pictures_of(fresh, track))
    fresh.close()
    assert track.at == [0, 4, 8, 10]
    env.set_state(track.states[-1])
    now = env.observe().image
    env.close()
    assert np.array_equal(drawn[0], seen[0]), "at rest, to the last pixel"
    assert np.array_equal(drawn[-1], now), "and in motion those of the simulator that ran, in that state"
    for picture, met in zip(drawn, seen, strict=True):  # what the policy saw is one physics step (2 ms) older
        assert np.abs(picture.astype(int) - met).mean() < 1
    assert not np.array_equal(drawn[0], drawn[-1]), "the arm has moved"


@pytest.mark.sim
@pytest.mark.slow
def test_an_evaluation_leaves_tracks_and_films_are_drawn_once(tmp_path, monkeypatch):
    start, settings = (
        official_start(load_task("libero_spatial", 0), 0),
        EnvSettings(image_size=64, quality="fast", max_steps=10),
    )
    folder = tmp_path / "expert"
    evaluate([Evaluation(folder, Label("expert", None), Scripted(), films=True)], [start], settings, 1)
    (record,) = read_episodes(folder)
    assert record.track == "tracks/libero_spatial_task0_official_test_0.npz"
    cast = Cast("expert", folder, [record], None)
    asked = tmp_path, [cast], [start], [Chosen(start.id, "nearest miss")], settings, 2
    (video,) = films(*asked)
    data = FilmData.read(tmp_path / video.data)
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / video.path)) == (4, 0.8)
    assert (data.steps, data.size, data.grid, data.success) == ((0, 4, 8, 10), SIZE, (), False)
    assert 20 < data.outlines[0].width < 80, "the bowl"
    assert data.outlines[0].mask(SIZE).sum() > 200
    assert all(0.05 < away < 0.6 for away in data.distance)
    assert data.opening[0] == pytest.approx(0.08, abs=0.005)
    assert len(data.actions) == 10
    before = (tmp_path / video.path).stat().st_mtime_ns
    (shown,) = evaluation_films(folder, [start], None, settings, 1)
    assert imageio_ffmpeg.count_frames_and_secs(str(shown)) == (4, 0.4)
    monkeypatch.setattr(filming, "executor", None)  # nothing is missing, so nobody draws
    assert films(*asked) == [video]
    assert evaluation_films(folder, [start], None, settings, 1) == [shown]
    assert (tmp_path / video.path).stat().st_mtime_ns == before


@pytest.mark.sim
@pytest.mark.slow
def test_a_damaged_track_costs_its_film_alone(tmp_path, capsys):
    start, settings = official_start(load_task("libero_spatial", 0), 0), EnvSettings(quality="fast")
    with LiberoEnv(image_size=16) as env:
        env.reset(start)
        rest = env.state()
    casts = []
    for arm, states in (("C1", [rest]), ("C2", [rest * np.nan]), ("C3", []), ("C4", [rest])):
        folder, name = tmp_path / arm / "seed0", "tracks/a.npz"
        if states:
            Track(states, [0], [np.zeros(7)]).save(folder / name)
        else:
            (folder / "tracks").mkdir(parents=True)
            (folder / name).write_bytes(b"PK")
        record = EpisodeRecord(Label(arm, 0), StartName.of(start), False, 1, 1.0, track=name)
        casts.append(Cast(arm, folder, [record], None))
    drawn = films(tmp_path, casts, [start], [Chosen(start.id, "nearest miss")], settings, 1)
    assert [video.condition for video in drawn] == ["C1", "C4"]
    said = " ".join(capsys.readouterr().err.split()).split("only its film is lost")
    assert ["C2" in said[0], "C3" in said[1], len(said)] == [True, True, 3]


@pytest.mark.sim
def test_a_film_is_that_of_its_track_whatever_was_drawn_before_on_its_start():
    """Where the hand is to grasp a tall thing is known from how it stood at first: not from how another arm left it."""
    start = official_start(load_task("libero_object", 2), 0)
    with LiberoEnv(image_size=16, quality="fast") as env:
        env.reset(start)
        rest = env.state()
        turned = rest.copy()
        joint = env.sim.model.get_joint_qpos_addr(f"{start.target}_joint0")[0]
        turned[1 + joint + 3 : 1 + joint + 7] = [0, 1, 0, 0]  # its long axis is level
        alone = redrawn(env, start, Track([rest], [0]))
        other = redrawn(env, start, Track([rest, turned], [0, 4]))
        after = redrawn(env, start, Track([rest], [0]))
    assert other.distance[0] == alone.distance[0]
    assert other.distance[1] != pytest.approx(alone.distance[0], abs=0.005)
    assert after.distance == alone.distance


def test_tracks_stop_where_their_room_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "TRACKS_BYTES", 1000)
    monkeypatch.setattr(evaluating, "replace", lambda record, track: track)
    track = Track([np.arange(500.0)], [0], [np.zeros(7)])
    kept = []
    for index in range(3):
        name = StartName("s", 0, "wide", "test", index, "pick", "bowl")
        kept.append(evaluating._kept(SimpleNamespace(start=name), track, tmp_path))
    assert [isinstance(one, str) for one in kept] == [True, False, False]
    assert len(list((tmp_path / "tracks").iterdir())) == 1


def test_a_run_is_rolled_out_on_its_own_suite(tmp_path, monkeypatch):
    config = SimpleNamespace(train_starts=("libero_goal/3/wide/train/0", "libero_goal/1/wide/train/0"))
    monkeypatch.setattr(runs, "find_run", lambda run: Path(run))
    monkeypatch.setattr(runs.PolicyConfig, "load", lambda folder: config)
    assert runs.suite_of_run(str(tmp_path)) == "libero_goal"
    assert runs.suite_of_run("expert") == runs.suite_of_run("ws://localhost:1") == "libero_spatial"
    config.train_starts = ()
    assert runs.suite_of_run(str(tmp_path)) == "libero_spatial"
    monkeypatch.undo()
    with pytest.raises(UserError):
        runs.suite_of_run(str(tmp_path / "nothing"))
