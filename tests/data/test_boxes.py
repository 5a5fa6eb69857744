"""Boxes of the target: instance maps, files and detectors say the same thing in the same way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_hdf5 import NAMES, make_header, make_official, make_recording

from command_line import called
from la_reconvla.data.boxes import (
    Annotator,
    Boxes,
    Masks,
    annotator,
    box_iou,
    box_of,
    boxes_summary,
    filled,
    write_boxes,
)
from la_reconvla.data.demonstrations import Demonstrations, Episode
from la_reconvla.data.detector import Detector, moved_thing
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_writer import write_file
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.progress import progress
from tiny_models import DETECTORS

SIZE = 16


def drawn(index: int, length: int = 7, hidden: tuple[int, ...] = (), **changes: Any) -> Any:
    """An episode whose target is a rectangle that wanders; in `hidden` frames it cannot be seen."""
    recording = make_recording(index, length=length, size=SIZE, stride=2, **changes)
    recording.instances[:] = 2
    for frame, image in enumerate(recording.instances):
        if frame not in hidden:
            image[3 + frame : 8 + frame, 1 + index : 4 + index + frame] = 1
    return recording


@pytest.fixture
def demonstrations(tmp_path: Path) -> Demonstrations:
    recordings = [drawn(0, hidden=(0, 2)), drawn(1, length=4)]
    write_file(tmp_path / "a_demo.hdf5", make_header(0, SIZE, 2), recordings)
    write_file(tmp_path / "b_demo.hdf5", make_header(1, SIZE, 2), [drawn(2, task=1, length=5)])
    return open_demonstrations(tmp_path)


def write(demonstrations: Demonstrations, source: Annotator, path: Path) -> Boxes:
    with progress("Annotating", total=len(demonstrations.episodes)) as bar:
        write_boxes(demonstrations, source, path, bar)
    return Boxes(path)


def lines_of(path: Path, *records: Any) -> Boxes:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Boxes(path)


# ---------------------------------------------------------------- boxes


def test_masks_give_the_box_of_the_target_and_of_the_nearest_frame_where_it_is_hidden(demonstrations) -> None:
    episode = demonstrations.episodes[0]
    one, three = [1 / 16, 4 / 16, 5 / 16, 9 / 16], [1 / 16, 6 / 16, 7 / 16, 11 / 16]
    np.testing.assert_allclose(Masks()(episode), [one, one, one, three])
    found = Masks().unfilled(episode)
    assert np.isnan(found[[0, 2]]).all()
    np.testing.assert_allclose(found[[1, 3]], [[*one, 1], [*three, 1]])
    assert found.dtype == Masks()(episode).dtype == np.float32
    assert (Masks().label, Masks().identity) == ("masks", "masks")


def test_the_box_lies_on_the_picture_that_is_seen(tmp_path: Path) -> None:
    """Stored pictures are upside down; box and picture are turned alike."""
    recording = drawn(0)
    recording.frames[:] = 0
    recording.frames[recording.instances == 1] = 255
    write_file(tmp_path / "a_demo.hdf5", make_header(0, SIZE, 2), [recording])
    batch = Samples(open_demonstrations(tmp_path), SIZE, 2, gaze=Masks()).batch(np.arange(4))
    assert batch.gaze is not None
    for image, box in zip(batch.images, batch.gaze, strict=True):
        left, top, right, bottom = (box * SIZE).round().int().tolist()
        assert (image[:, top:bottom, left:right] == 255).all()
        assert (image > 0).sum() == 3 * (right - left) * (bottom - top)


@given(st.data())
def test_a_box_is_the_smallest_around_all_pixels(data) -> None:
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(height, width)
    (box,) = box_of(mask[None])
    places = [(r, c) for r in range(height) for c in range(width) if mask[r, c]]
    if not places:
        assert np.isnan(box).all()
        return
    rows, columns = zip(*places, strict=True)
    wanted = [min(columns) / width, min(rows) / height, (max(columns) + 1) / width, (max(rows) + 1) / height]
    np.testing.assert_allclose(box, wanted, rtol=1e-6)


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any))
def test_frames_without_a_box_take_the_nearest_of_two_the_earlier(there: list[bool]) -> None:
    boxes = np.random.default_rng(0).random((len(there), 4)).astype(np.float32)
    boxes[~np.array(there)] = np.nan
    found = filled(boxes, "a")
    for i in range(len(there)):
        distance = 0
        while not any(0 <= j < len(there) and there[j] for j in (i - distance, i + distance)):
            distance += 1
        nearest = i - distance if i >= distance and there[i - distance] else i + distance
        np.testing.assert_array_equal(found[i], boxes[nearest])


def test_an_episode_without_any_box_is_refused() -> None:
    with pytest.raises(UserError, match=r"a_demo.hdf5/demo_3: no frame has a box.*leave the episode out"):
        filled(np.full((3, 4), np.nan, np.float32), "a_demo.hdf5/demo_3")


def test_overlap_is_intersection_over_union() -> None:
    a = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0, 0, 1, 0.5]], np.float32)
    b = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.5, 0, 1, 1]], np.float32)
    np.testing.assert_allclose(box_iou(a, b), [1, 0, 1 / 3], rtol=1e-6)


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize("stride", [None, 4])
def test_a_batch_has_the_box_of_its_own_frame(demonstrations: Demonstrations, stride: int | None) -> None:
    samples = Samples(demonstrations, 8, 2, stride=stride, gaze=Masks())
    order = np.random.default_rng(0).permutation(len(samples))
    gaze = samples.batch(order).gaze
    assert gaze is not None
    assert gaze.dtype == torch.float32
    for row, index in enumerate(order):
        episode, step = samples.origin(index)
        np.testing.assert_array_equal(gaze[row].numpy(), Masks()(episode)[step // 2])


def test_who_declares_no_annotation_sees_none(demonstrations: Demonstrations, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a batch nor anywhere in the samples, and the instance maps are not even read."""
    monkeypatch.setattr(Episode, "instances", lambda self: pytest.fail("the instance maps were read"))
    samples = Samples(demonstrations, 8, 2, wrist=True, proprio="all")
    assert samples.batch(np.arange(3)).gaze is None
    assert not any(isinstance(value, torch.Tensor) and value.shape[-1:] == (4,) for value in vars(samples).values())


# ---------------------------------------------------------------- files


def test_a_file_of_masks_says_what_the_masks_say(demonstrations: Demonstrations, tmp_path: Path) -> None:
    path = tmp_path / "boxes.jsonl"
    boxes = write(demonstrations, Masks(), path)
    for episode in demonstrations.episodes:
        np.testing.assert_array_equal(boxes.unfilled(episode), Masks().unfilled(episode))
        np.testing.assert_array_equal(boxes(episode), Masks()(episode))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["episode"], line["step"]) for line in lines] == [
        (e.name, step) for e in demonstrations.episodes for step in e.frame_steps
    ]
    assert lines[0] == {"episode": "a_demo.hdf5/demo_0", "step": 0, "box": None}
    assert lines[1] == {"episode": "a_demo.hdf5/demo_0", "step": 2, "box": [1 / 16, 4 / 16, 5 / 16, 9 / 16], "score": 1}
    assert [p.name for p in tmp_path.iterdir() if "boxes" in p.name] == ["boxes.jsonl"]
    again = tmp_path / "again.jsonl"
    assert write(demonstrations, boxes, again).identity == boxes.identity
    again.write_text(path.read_text() + "\n")
    assert Boxes(again).identity != boxes.identity


@dataclasses.dataclass(frozen=True)
class Killed(Masks):
    """Stops at one episode, and counts which it was asked for."""

    at: str | None
    asked: list[str] = dataclasses.field(default_factory=list, compare=False)

    def unfilled(self, episode: Episode) -> Any:
        if episode.name == self.at:
            raise KeyboardInterrupt
        self.asked.append(episode.name)
        return super().unfilled(episode)


def test_a_stopped_file_goes_on_at_its_episode(demonstrations: Demonstrations, tmp_path: Path) -> None:
    path, names = tmp_path / "boxes.jsonl", [episode.name for episode in demonstrations.episodes]
    with pytest.raises(KeyboardInterrupt):
        write(demonstrations, Killed(names[1]), path)
    assert not path.exists()
    (part,) = tmp_path.glob("*.part")
    with part.open("a") as file:
        file.write('[{"episode": ')  # torn by a kill
    rest = Killed(None)
    resumed = write(demonstrations, rest, path)
    assert rest.asked == names[1:]
    assert resumed.identity == write(demonstrations, Masks(), tmp_path / "undisturbed.jsonl").identity
    assert not list(tmp_path.glob("*.part"))


GOOD = {"episode": "a_demo.hdf5/demo_1", "step": 0, "box": [0.1, 0.2, 0.3, 0.4], "score": 0.5}


def test_the_score_is_optional(demonstrations: Demonstrations, tmp_path: Path) -> None:
    boxes = lines_of(tmp_path / "boxes.jsonl", {k: v for k, v in GOOD.items() if k != "score"})
    np.testing.assert_allclose(boxes(demonstrations.episodes[1]), [[0.1, 0.2, 0.3, 0.4]] * 2)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({k: v for k, v in GOOD.items() if k != "box"}, "line 2 is not .*mend or remove"),
        ({k: v for k, v in GOOD.items() if k != "step"}, "line 2 is not"),
        ({**GOOD, "step": 2.0}, "line 2 is not"),
        ({**GOOD, "step": True}, "line 2 is not"),
        ({**GOOD, "episode": 3}, "line 2 is not"),
        ({**GOOD, "box": [0.1, 0.2, 0.3]}, "line 2 is not"),
        ({**GOOD, "box": [0.1, 0.2, 0.3, "x"]}, "line 2 is not"),
        ({**GOOD, "box": 3}, "line 2 is not"),
        ({**GOOD, "score": [1]}, "line 2 is not"),
        ([1, 2], "line 2 is not"),
        ("text", "line 2 is not"),
        ({**GOOD, "step": 2, "box": [0.3, 0.2, 0.1, 0.4]}, r"line 2: the box .*left < right.*mend or remove"),
        ({**GOOD, "step": 2, "box": [0.1, 0.4, 0.3, 0.2]}, "line 2: the box"),
        ({**GOOD, "step": 2, "box": [0.1, 0.2, 0.1, 0.4]}, "line 2: the box"),
        ({**GOOD, "step": 2, "box": [10, 20, 30, 40]}, "line 2: the box .*fractions"),
        ({**GOOD, "step": 2, "box": [-0.1, 0.2, 0.3, 0.4]}, "line 2: the box"),
        ({**GOOD, "step": 2, "box": [float("nan"), 0.2, 0.3, 0.4]}, "line 2: the box"),
        ({**GOOD, "step": 2, "score": float("nan")}, "line 2: the box .*score"),
        (GOOD, "line 2 repeats step 0 of a_demo.hdf5/demo_1 .line 1.: keep one"),
        ({**GOOD, "step": 1}, "line 2: a_demo.hdf5/demo_1 has no picture at step 1.*la-reconvla data boxes"),
    ],
)
def test_a_line_that_cannot_be_is_named(demonstrations: Demonstrations, tmp_path: Path, second: Any, said: str) -> None:
    boxes = lines_of(tmp_path / "boxes.jsonl", GOOD, second)
    with pytest.raises(UserError, match=f"boxes.jsonl, {said}"):
        boxes(demonstrations.episodes[1])


def test_a_damaged_file_is_explained(demonstrations: Demonstrations, tmp_path: Path) -> None:
    path, episode = tmp_path / "boxes.jsonl", demonstrations.episodes[1]
    for bytes_ in (b"{torn", b"\xff\xfe", b"\n"):
        path.write_bytes(json.dumps(GOOD).encode() + b"\n" + bytes_)
        with pytest.raises(UserError, match="line 2 is not"):
            Boxes(path)(episode)
    with pytest.raises(UserError, match=r"no line of b_demo.hdf5/demo_0.*la-reconvla data boxes"):
        lines_of(path, GOOD)(demonstrations.episodes[2])
    with pytest.raises(UserError, match=r"a_demo.hdf5/demo_1: no frame has a box"):
        lines_of(path, {**GOOD, "box": None})(episode)
    with pytest.raises(UserError, match="cannot be read"):
        Boxes(tmp_path / "missing.jsonl")(episode)


def test_names_of_annotators(tmp_path: Path) -> None:
    path = tmp_path / "boxes.jsonl"
    path.touch()
    assert annotator("masks") == Masks()
    assert annotator(str(path)) == Boxes(path)
    with pytest.raises(UserError, match="no such file; write it with `la-reconvla data boxes"):
        annotator(str(tmp_path / "other.jsonl"))
    with pytest.raises(UserError, match="neither masks nor a file of boxes"):
        annotator("IDEA-Research/grounding-dino-tiny")


# ---------------------------------------------------------------- what a detector is asked for


@pytest.mark.parametrize(
    ("instruction", "thing"),
    [
        ("pick up the black bowl next to the plate and place it on the plate", "black bowl"),
        (
            "Pick the akita black bowl not between the plate and the ramekin and place it",
            "akita black bowl",
        ),
        ("pick up the bbq sauce and place it in the basket", "bbq sauce"),
        ("Put the wine bottle on the rack", "wine bottle"),
        ("push the plate to the front of the stove", "plate"),
        ("open the middle drawer of the cabinet", "middle drawer"),
        ("open the top drawer and put the bowl inside", "top drawer"),
        ("turn on the stove and put the moka pot on it", "stove"),
        ("switch stove on and put moka pot on it", "stove"),
        ("slide open the top drawer and place the bowl in it", "top drawer"),
        ("put both the alphabet soup and the cream cheese box in the basket", "alphabet soup"),
        ("put the yellow and white mug in the microwave and close it", "yellow and white mug"),
        ("place alphabet soup and tomato sauce into basket", "alphabet soup"),
        ("open the cabinet’s middle drawer", "cabinet’s middle drawer"),
    ],
)
def test_the_thing_to_move(instruction: str, thing: str) -> None:
    assert moved_thing(instruction) == thing


def test_an_instruction_that_names_nothing_is_refused() -> None:
    for text in ("pick it up", "push", ""):
        with pytest.raises(UserError, match="names nothing to move: reword it"):
            moved_thing(text)


# ---------------------------------------------------------------- detectors


@pytest.fixture(scope="module", params=sorted(DETECTORS))
def folder(request, tmp_path_factory) -> Path:
    """A random detector as the hub has them: weights, tokenizer, and torchvision's picture reader by name."""
    folder = tmp_path_factory.mktemp(request.param)
    DETECTORS[request.param](folder)
    return folder


@pytest.fixture
def told(tmp_path: Path) -> Demonstrations:
    recordings = [drawn(i, length=19, instruction="pick up the black bowl on the plate") for i in range(2)]
    write_file(tmp_path / "a_demo.hdf5", make_header(0, SIZE, 2), recordings)
    return open_demonstrations(tmp_path)


def raw_answers(folder: Path, episode: Episode) -> list[tuple[list[float], float]]:
    """Box and score of each frame by hand: the library's model, its raw outputs, one frame at a time."""
    from transformers import (
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessorPil,
        PreTrainedTokenizerFast,
    )

    dino = json.loads((folder / "config.json").read_text())["model_type"] == "grounding-dino"
    reader, kind, text = (
        (GroundingDinoImageProcessorPil, GroundingDinoForObjectDetection, "black bowl.")
        if dino
        else (Owlv2ImageProcessorPil, Owlv2ForObjectDetection, "a photo of a black bowl")
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model: Any = kind.from_pretrained(folder)
    answers = []
    for frame in episode.frames():
        words = tokenizer([text], return_tensors="pt", padding=False if dino else "max_length")
        pixels = reader.from_pretrained(folder)(frame, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            outputs = model(pixel_values=pixels, input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        scores = 1 / (1 + np.exp(-outputs.logits[0].double().numpy().max(1)))
        x, y, w, h = outputs.pred_boxes[0, scores.argmax()].tolist()
        corners = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, 1)
        answers.append((corners.tolist(), scores.max()))
    return answers


def test_a_detector_s_box_is_that_of_its_highest_score(folder: Path, told: Demonstrations) -> None:
    episode = told.episodes[0]
    answers = raw_answers(folder, episode)
    found = Detector(str(folder), threshold=0.0).unfilled(episode)
    assert found.shape == (10, 5)
    assert len({tuple(box) for box, _ in answers}) > 1, "the model does not look at the picture"
    for row, (box, score) in zip(found, answers, strict=True):
        np.testing.assert_allclose(row, [*box, score], atol=1e-4)


def test_low_scores_do_not_count_and_frames_between_are_filled(folder: Path, told: Demonstrations) -> None:
    episode = told.episodes[0]
    scores = sorted(score for _, score in raw_answers(folder, episode))
    threshold = float(scores[4] + scores[5]) / 2
    found = Detector(str(folder), threshold=threshold).unfilled(episode)
    assert np.isnan(found[:, 0]).sum() == sum(score <= threshold for score in scores)
    sparse = Detector(str(folder), threshold=0.0, every=4)
    rare = sparse.unfilled(episode)
    assert np.flatnonzero(~np.isnan(rare[:, 0])).tolist() == [0, 4, 8]
    boxes = sparse(episode)
    np.testing.assert_array_equal(boxes, rare[[0, 0, 0, 4, 4, 4, 4, 8, 8, 8], :4])
    assert ((boxes >= 0) & (boxes <= 1)).all()


def test_the_identity_of_a_detector_is_its_weights_and_how_it_is_asked(folder: Path) -> None:
    detector = Detector(str(folder), threshold=0.3, every=2)
    assert detector.identity["revision"].startswith("sha256:")
    assert detector.identity == Detector(str(folder), threshold=0.3, every=2, device="cpu").identity
    assert detector.identity != Detector(str(folder), threshold=0.4, every=2).identity
    json.dumps(detector.identity)


def test_a_detector_that_cannot_be_downloaded_is_explained(told: Demonstrations, monkeypatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)
    with pytest.raises(UserError, match=r"google/owlv2 cannot be downloaded .no network.*then --source FOLDER"):
        Detector("google/owlv2").unfilled(told.episodes[0])


def test_what_is_no_detector_is_explained(tmp_path: Path, told: Demonstrations) -> None:
    for options in ({"threshold": 1.0}, {"threshold": -0.1}, {"every": 0}):
        with pytest.raises(UserError, match="threshold in"):
            Detector("a", **options)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"no \*.safetensors"):
        Detector(str(tmp_path)).unfilled(told.episodes[0])
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="unknown family of detectors 'bert'"):
        Detector(str(tmp_path)).unfilled(told.episodes[0])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    with pytest.raises(UserError, match="cannot be loaded as a detector"):
        Detector(str(tmp_path), threshold=0.1).unfilled(told.episodes[0])


# ---------------------------------------------------------------- the command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    return lambda *arguments: called(monkeypatch, capsys, "data", "boxes", *arguments)


def test_the_command_writes_a_file_and_one_sentence(demonstrations: Demonstrations, tmp_path: Path, run) -> None:
    out = tmp_path / "boxes.jsonl"
    code, said, _ = run(tmp_path, "--out", out)
    assert code == 0
    assert " ".join(said.split()) == (
        f"{out}: 3 episodes, 9 frames, 78% with a box of their own; against the masks: mean IoU 1.00, "
        "centre inside 100%"
    )
    np.testing.assert_array_equal(Boxes(out)(demonstrations.episodes[0]), Masks()(demonstrations.episodes[0]))


def test_the_command_asks_a_detector(told: Demonstrations, folder: Path, tmp_path: Path, run) -> None:
    out = tmp_path / "boxes.jsonl"
    code, said, _ = run(tmp_path, "--out", out, "--source", folder, "--threshold", 0, "--every", 5, "--device", "cpu")
    assert code == 0
    assert "2 episodes, 20 frames, 20% with a box of their own; against the masks: mean IoU 0" in " ".join(said.split())
    detector = Detector(str(folder), threshold=0.0, every=5)
    np.testing.assert_array_equal(Boxes(out)(told.episodes[1]), detector(told.episodes[1]))


def test_the_command_says_what_is_wrong(tmp_path: Path, run) -> None:
    make_official(tmp_path / "put_demo.hdf5")
    code, _, said = run(tmp_path, "--out", tmp_path / "boxes.json")
    assert (code, "is called *.jsonl" in said) == (2, True)
    code, _, said = run(tmp_path, "--out", tmp_path / "boxes.jsonl")
    assert (code, "has no 'instances/map'" in said) == (2, True)
    assert not (tmp_path / "boxes.jsonl").exists()


def test_episodes_without_any_box_count_as_missed(demonstrations: Demonstrations, tmp_path: Path) -> None:
    path = tmp_path / "boxes.jsonl"
    write(demonstrations, Masks(), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines_of(path, *({**line, "box": None} if "demo_1" in line["episode"] else line for line in lines))
    said = boxes_summary(demonstrations, path)
    assert "56% with a box of their own, 1 episodes without any (training refuses them)" in said
    assert "mean IoU 0.71, centre inside 71%" in said  # two of the seven frames that show the target
    only = Demonstrations(demonstrations.episodes[1:2])
    plain = dataclasses.replace(only.episodes[0], target=None, instance_names=())
    assert "masks" not in boxes_summary(Demonstrations((plain,)), path)
    assert NAMES[0] == only.episodes[0].target
