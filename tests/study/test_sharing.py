"""Policies, studies and demonstrations to a hub and back, over HTTP, and what is said when that cannot be."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard
from test_pretrained import batch_of, save_tiny, tiny, train_pretrained
from test_report import study_results, with_evidence, write_study
from test_train import train_tiny, write_demonstrations

from fake_hub import TOKEN, Hub, Repository, point_at, serving
from la_reconvla.backbones.trained_weights import Lora
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.errors import UserError
from la_reconvla.report.write import write_report
from la_reconvla.sim.collection_folder import Summary, TaskSummary
from la_reconvla.storage import write_json
from la_reconvla.study import publish
from la_reconvla.study.cards import Labels, policy_licence
from la_reconvla.study.publish import pull, push
from la_reconvla.study.shareable import DEMONSTRATIONS, LEROBOT, POLICY, STUDY, kind_of, matching
from la_reconvla.training.checkpoint import PolicyConfig, find_run, load_policy

NAME, PICKLE = "someone/thing", b"\x80\x04\x95 a pickle"
POLICY_CONFIG = b'{"schema": 2, "condition": "C4"}'
GOLDEN = Path(__file__).parents[1] / "data/lerobot"
OURS = Labels(NAME, "mit")


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(monkeypatch, str(tmp_path / "cache")) as hub:
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return train_tiny(write_demonstrations(folder / "data"), folder / "run")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study by its files: those of its cells are stand-ins."""
    folder = write_study(tmp_path_factory.mktemp("studies") / "study", with_evidence(study_results()))
    write_report(folder)
    write_json(folder / "study.json", {"schema": 2, "config": {"backbone": {"kind": "SmallPaliGemma"}}})
    cell = folder / "C4/seed0"
    for name in ("config.json", "train.json", "evaluation.json", "held_out.json", "metrics.jsonl", "episodes.jsonl"):
        (cell / name).parent.mkdir(parents=True, exist_ok=True)
        (cell / name).write_text("" if name == "episodes.jsonl" else "{}\n")  # no episode has been rolled out
    (folder / "floors/blind_replay").mkdir(parents=True)
    (folder / "floors/blind_replay/episodes.jsonl").write_text("{}\n")
    (cell / "model.safetensors").write_bytes(b"weights")
    for name in ("state/state.safetensors", "tracked.json", "tensorboard/events.1", "looks/000000.npy", "notes.pkl"):
        (cell / name).parent.mkdir(parents=True, exist_ok=True)
        (cell / name).write_bytes(PICKLE)
    write_demonstrations(folder / "demonstrations")
    (folder / ".lease-000000").touch()
    return folder


@pytest.fixture
def study(written: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "study"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kept(hub: Hub, kind: str, name: str = NAME) -> dict[str, bytes]:
    held = hub.repositories[kind, name]
    return held.commits[held.head]


# ---------------------------------------------------------------- there and back


def test_a_policy_goes_and_comes_back(run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = push(run, Labels(NAME, "mit", ("someone/demos",)), private=True)
    there = kept(hub, "model")
    assert set(there) == {"README.md", "config.json", "model.safetensors"}
    assert (done.repo, done.revision) == (NAME, hub.repositories["model", NAME].head)
    assert hub.repositories["model", NAME].private
    card = ModelCard(there["README.md"].decode())
    assert (card.data.license, card.data.datasets, card.data.pipeline_tag) == ("mit", ["someone/demos"], "robotics")
    assert f"la-reconvla share pull {NAME} --out policy" in card.text
    size = sum(map(len, there.values()))
    assert f"uploading a policy to {NAME}: 3 files, {size / 1e6:.1f} MB" in " ".join(capsys.readouterr().err.split())

    out = pull(NAME, tmp_path / "out")
    said = " ".join(capsys.readouterr().err.split())
    assert f"downloading a policy from {NAME}: 3 files, {size / 1e6:.1f} MB" in said
    assert f"--revision {done.revision}" in said
    assert contents(out) == there
    assert list(tmp_path.glob(".out*")) == []
    batch = batch_of_tiny(run)
    assert torch.equal(load_policy(out)[0].act(batch), load_policy(run)[0].act(batch))


def batch_of_tiny(run: Path):
    from la_reconvla.contracts import PolicyInput

    size = load_policy(run)[1].backbone.image_size
    return PolicyInput(torch.full((1, 3, size, size), 90, dtype=torch.uint8), ["pick it up"])


def test_load_policy_takes_its_own_files_from_the_hub_and_nothing_else(run: Path, hub: Hub) -> None:
    push(run, OURS)
    hub.repositories["model", NAME].commit({"pytorch_model.bin": PICKLE, "modeling.py": b"raise SystemExit"})
    folder = find_run(NAME)
    assert set(contents(folder)) == {"config.json", "model.safetensors"}
    assert load_policy(NAME)[1] == load_policy(run)[1]


@pytest.mark.slow
def test_a_policy_whose_weights_nobody_has_goes_merged(hub: Hub, tmp_path: Path) -> None:
    source = str(save_tiny(tmp_path / "tiny", gemma=2))
    backbone = tiny(source, lora=Lora(rank=4)).pinned()
    trained = train_pretrained(write_demonstrations(tmp_path / "data"), tmp_path / "run", backbone)
    with pytest.raises(UserError, match="which nobody else has: push it with --merged"):
        push(trained, OURS)
    with pytest.raises(UserError, match=r"under which licence others may use .* --license"):
        push(trained, Labels(NAME), merged=True)
    assert hub.asked == []
    push(trained, OURS, merged=True)
    before = load_policy(trained)[0].act(batch_of().inputs)
    shutil.rmtree(source)
    policy, _ = load_policy(pull(NAME, tmp_path / "out"))
    torch.testing.assert_close(policy.act(batch_of().inputs), before, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_study_goes_without_weights_and_its_report_is_drawn_again(
    study: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(study, Labels(NAME))
    assert "the weights, 1 file, 0.0 kB, stay here; --weights uploads them too" in capsys.readouterr().err
    there = kept(hub, "dataset")
    cell = {f"C4/seed0/{name}.json" for name in ("config", "train", "evaluation", "held_out")}
    cell |= {f"C4/seed0/{name}.jsonl" for name in ("metrics", "episodes")}
    top = {"README.md", "study.json", "results.json", "tables.md", "report.html"}
    assert cell | top | {"floors/blind_replay/episodes.jsonl"} <= set(there)
    assert not [name for name in there if name.endswith((".pkl", ".npy", ".hdf5", ".safetensors", ".mp4"))]
    card = DatasetCard(there["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.task_categories == ["robotics"]
    assert card.text.strip().endswith((study / "tables.md").read_text().strip())

    out = pull(NAME, tmp_path / "out")  # there is no model of this name, so the data set is meant
    assert "left there: report.html" in " ".join(capsys.readouterr().err.split())
    assert contents(out) == {name: content for name, content in there.items() if name != "report.html"}
    write_report(out)
    assert (out / "tables.md").read_bytes() == (study / "tables.md").read_bytes()
    assert (out / "report.html").stat().st_size > 100_000, "curves and pictures are in it"


@pytest.mark.slow
def test_a_study_goes_with_weights_on_request(study: Path, hub: Hub, tmp_path: Path) -> None:
    push(study, Labels(NAME), weights=True)
    assert kept(hub, "dataset")["C4/seed0/model.safetensors"] == b"weights"
    assert (pull(f"datasets/{NAME}", tmp_path / "out") / "C4/seed0/model.safetensors").read_bytes() == b"weights"


@pytest.mark.slow
def test_an_unfinished_study_stays(study: Path, hub: Hub) -> None:
    (study / "results.json").unlink()
    with pytest.raises(UserError, match=r"has no results.json: finish it with the command that made it"):
        push(study, OURS)
    assert hub.asked == []


def test_demonstrations_go_and_come_back(hub: Hub, tmp_path: Path) -> None:
    data = write_demonstrations(tmp_path / "data")
    tasks = (TaskSummary("task", 4, 100, {"missed": 2}, 0),)
    write_json(data / "summary.json", Summary(tasks, 1.0, 1.0))
    write_json(data / "collection.json", {})
    (data / ".pictures").mkdir()
    (data / ".pictures/0.bin").write_bytes(PICKLE)
    done = push(data, OURS)
    assert done.repo == f"datasets/{NAME}"
    there = kept(hub, "dataset")
    assert set(there) == {"README.md", "collection.json", "summary.json", "task_demo.hdf5"}
    card = there["README.md"].decode()
    opened = open_demonstrations(data)
    steps = sum(len(e.actions) for e in opened.episodes)
    for said in (f"4 episodes, {steps} steps", opened.hash, opened.episodes[0].instruction, "n<1K"):
        assert said in card
    assert "| task | 4 | 2 | 67% (30% to 90%) |" in card  # Wilson's interval of 4 in 6
    out = pull(done.repo, tmp_path / "out", done.revision)
    assert open_demonstrations(out).hash == opened.hash


def test_a_lerobot_dataset_is_had_by_the_version_of_its_format(hub: Hub, tmp_path: Path) -> None:
    """As LeRobot asks for it; pushed again, the version names what is new."""
    data = Path(shutil.copytree(GOLDEN / "images", tmp_path / "data"))
    for stands in ("upright", "mirrored"):
        write_json(data / "meta/la_reconvla.json", {"orientation": stands})
        done = push(data, OURS)
        assert hub.repositories["dataset", NAME].tags == {"v3.0": done.revision}
        out = pull(done.repo, tmp_path / stands, "v3.0")
        assert open_demonstrations(out).orientation == stands
    assert len(set(hub.repositories["dataset", NAME].commits)) == 3, "the empty one of the beginning, and two"


def test_the_folder_that_one_stands_in_may_be_the_one(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, OURS)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    pull(NAME, Path())
    assert set(contents(tmp_path / "empty")) == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("made", [True, False])
def test_a_link_is_not_replaced(hub: Hub, tmp_path: Path, made: bool) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "real")
    if made:
        (tmp_path / "real").mkdir()
    with pytest.raises(UserError, match="out is a link, and is not replaced"):
        pull(NAME, tmp_path / "out")
    assert hub.asked == []


@pytest.mark.parametrize("way", ["/secret/first", "../secret/first", "me/first"])
def test_of_the_origin_only_its_name_leaves(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A name on the hub stays whole. Nobody knows the licence of what an origin of unknown states has learnt."""
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = json.loads((copy / "config.json").read_text())
    config["backbone"]["weights"] = "/secret/pretrained.safetensors"
    for starts, licence in (([], None), (["libero_spatial/0/official/train/0"], "apache-2.0")):
        origin = {"kind": "Origin", "run": way, "weights_hash": "0123456789abcdef", "starts": starts}
        (copy / "config.json").write_text(json.dumps({**config, "origin": origin}))
        assert policy_licence(PolicyConfig.load(copy)) == licence
    push(copy, OURS)
    there, name = kept(hub, "model"), "me/first" if way == "me/first" else "first"
    assert json.loads(there["config.json"])["origin"] == {**origin, "run": name}
    assert json.loads(there["config.json"])["backbone"]["weights"] == "pretrained.safetensors"
    assert f"0123456789abcdef of {name}: 1 further" in there["README.md"].decode()
    assert not any(b"secret" in content for content in there.values())


def test_an_older_commit_is_had_by_its_name(run: Path, hub: Hub, tmp_path: Path) -> None:
    first = push(run, OURS).revision
    hub.repositories["model", NAME].commit({"config.json": POLICY_CONFIG})
    assert (pull(NAME, tmp_path / "new") / "config.json").read_bytes() == POLICY_CONFIG
    assert (pull(NAME, tmp_path / "old", first) / "config.json").read_bytes() != POLICY_CONFIG
    with pytest.raises(UserError, match="someone/thing has no revision nope on the hub: check it, or leave it out"):
        pull(NAME, tmp_path / "none", "nope")


# ---------------------------------------------------------------- what is not taken


def test_only_files_that_are_expected_are_asked_for(hub: Hub, tmp_path: Path) -> None:
    held = hub.repositories["model", NAME] = Repository()
    wanted = {"config.json": POLICY_CONFIG, "model.safetensors": b"w", "backbone/model.safetensors": b"b"}
    others = ["pytorch_model.bin", "sub/config.json", "modeling.py", "backbone/x.pkl", "optimizer.pt", ".gitattributes"]
    held.commit({**wanted, **dict.fromkeys(others, PICKLE)})
    assert contents(pull(NAME, tmp_path / "out")) == wanted
    assert set(hub.downloaded) == set(wanted)


def test_a_repository_of_something_else_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["model", NAME] = Repository()
    hub.repositories["model", NAME].commit({"config.json": b"{}", "pytorch_model.bin": PICKLE})
    with pytest.raises(UserError, match=r"holds no policy, .* \(config.json, pytorch_model.bin\): check its name"):
        pull(NAME, tmp_path / "out")
    assert hub.downloaded == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [b'{"type": "act", "n_obs_steps": 1}', b"[]", b"no JSON", b"{}"])
def test_of_a_policy_of_others_no_weights_are_taken(hub: Hub, tmp_path: Path, config: bytes) -> None:
    hub.repositories["model", NAME] = Repository()
    hub.repositories["model", NAME].commit({"config.json": config, "model.safetensors": b"gigabytes"})
    with pytest.raises(UserError, match=r"holds no policy, .* \(config.json, model.safetensors\): check its name"):
        pull(NAME, tmp_path / "out")
    assert hub.downloaded == ["config.json"]
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


@pytest.mark.parametrize("name", ["../config.json", "C4/../../config.json", ".hidden/config.json"])
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    for kind in (POLICY, STUDY, DEMONSTRATIONS, LEROBOT):
        assert matching([name], (*kind.files, *kind.weights)) == []


def test_folders_are_known_by_their_files() -> None:
    lerobot = ["meta/info.json", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"]
    lerobot += ["videos/observation.images.top/chunk-000/file-000.mp4", "videos/chunk-000/top/episode_000000.mp4"]
    for names, kind in (
        (["study.json", "config.json", "model.safetensors"], STUDY),
        (["config.json", "model.safetensors"], POLICY),
        (["config.json", "pytorch_model.bin"], None),
        (["a_demo.hdf5"], DEMONSTRATIONS),
        (["deep/a_demo.hdf5"], None),
        (lerobot, LEROBOT),
        ([], None),
    ):
        assert kind_of(names) is kind
    assert matching([*lerobot, "data/x.py"], LEROBOT.files) == sorted(lerobot)


def test_nothing_is_overwritten(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="holds something already, and nothing is overwritten: choose another --out"):
        pull(NAME, tmp_path)
    assert hub.asked == []


def test_options_of_another_kind_are_refused(run: Path, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--weights is for a study, and .* is a policy: leave it out"):
        push(run, OURS, weights=True)
    with pytest.raises(UserError, match=r"--merged is for a policy, and .* is a set of demonstrations: leave it out"):
        push(write_demonstrations(tmp_path / "data"), OURS, merged=True)
    with pytest.raises(UserError, match=r"is no finished run \(config.json, model.safetensors\), no study"):
        push(tmp_path / "data/..", OURS)
    assert hub.asked == []


# ---------------------------------------------------------------- stopped, and damaged


def test_a_download_that_breaks_off_keeps_the_files_that_are_whole(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it tries again
    files = {
        "config.json": POLICY_CONFIG,
        "model.safetensors": bytes(2_000_000),
        "backbone/model.safetensors": bytes(3_000),
    }
    held = hub.repositories["model", NAME] = Repository()
    held.commit(files)
    hub.breaks["model.safetensors"] = 100_000
    with pytest.raises(UserError, match=r"cannot be downloaded .* the same command again, which keeps the files"):
        pull(NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    hub.breaks, hub.downloaded = {}, []
    assert contents(pull(NAME, tmp_path / "out")) == files
    assert hub.downloaded == ["config.json", "model.safetensors"]  # the first again, to see what it is
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "out"}


def test_what_is_not_what_the_hub_says_is_refused(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["model", NAME] = Repository()
    hub.repositories["model", NAME].commit({"config.json": POLICY_CONFIG, "model.safetensors": b"weights"})
    real = publish.snapshot_download

    def damaging(*given: object, local_dir: Path, **options: object) -> None:
        real(*given, local_dir=local_dir, **options)  # pyright: ignore
        (local_dir / "model.safetensors").write_bytes(b"weightz")

    monkeypatch.setattr(publish, "snapshot_download", damaging)
    with pytest.raises(UserError, match=r"model\.safetensors is not what the hub says that it is: delete"):
        pull(NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what a hub answers


def test_who_is_not_logged_in_is_told_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"cannot be uploaded to \(.*401.*run `hf auth login` with a token that may"):
        push(run, OURS)


def test_who_may_not_write_is_told_so(run: Path) -> None:
    with pytest.raises(UserError, match=r"other/thing cannot be uploaded to .*403.*`hf auth login` with a token"):
        push(run, Labels("other/thing", "mit"))


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_repository_that_is_missing_or_private(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    hub.repositories["model", "other/private"] = Repository(private=True)
    monkeypatch.setenv("HF_TOKEN", token)
    for name in ("other/missing", "datasets/other/missing", "a b/c", *(() if token else ("other/private",))):
        with pytest.raises(UserError, match=r"is no repository .* check the name, or run `hf auth login` if it is pri"):
            pull(name, tmp_path / "out")


def test_a_gated_one_asks_for_its_licence(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["model", NAME] = Repository(gated=True)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match="is gated: accept its licence"):
        pull(NAME, tmp_path / "out")


def test_without_a_network(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_at(monkeypatch, f"http://127.0.0.1:{port}", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot be uploaded to \(.*check your network and run the same command again"):
        push(run, OURS)
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*check your network"):
        pull(NAME, tmp_path / "out")
    with pytest.raises(UserError, match=r"there is no folder someone/thing, and from the hub: .*`hf download"):
        find_run(NAME)


@pytest.mark.slow
def test_the_commands_talk_to_the_hub_that_the_environment_names(run: Path, hub: Hub, tmp_path: Path) -> None:
    names = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    environment = {**os.environ, **names, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def command(*words: str) -> str:
        line = [sys.executable, "-m", "la_reconvla", "share", *words]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=240)
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    said = command("hub", str(run), "--repo", NAME, "--license", "mit")
    named = re.search(r"`la-reconvla (share pull .*) --out FOLDER`", said)
    assert named is not None
    assert command(*named[1].split()[1:], "--out", "got") == "got"
    assert json.loads((tmp_path / "got/config.json").read_text())["condition"] == "C4"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "weights", "licence"),
    [("google/paligemma-3b-pt-224", True, "gemma"), ("google/paligemma-3b-pt-224", False, "apache-2.0")],
)
def test_weights_of_a_study_have_the_licence_of_their_backbone(
    study: Path, hub: Hub, source: str, weights: bool, licence: str
) -> None:
    write_json(study / "study.json", {"schema": 2, "config": {"backbone": {"kind": "Pretrained", "source": source}}})
    push(study, Labels(NAME), weights=weights)
    data = DatasetCard(kept(hub, "dataset")["README.md"].decode()).data.to_dict()
    assert (data["license"], data["base_model"]) == (licence, source)
    write_json(study / "study.json", {"schema": 2, "config": {"backbone": {"source": "somebody/model"}}})
    with pytest.raises(UserError, match="under which licence"):
        push(study, Labels(NAME), weights=True)
