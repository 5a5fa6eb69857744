"""CALVIN's data as demonstrations, and what its pickled annotations may not do."""

from __future__ import annotations

import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import calvin_layout
import numpy as np
import pytest
from calvin_layout import FIRST, LENGTH

from la_reconvla.data.arrays_only import Array, Dtype, read_object
from la_reconvla.data.calvin import ANNOTATIONS, CALVIN_ACTIONS, NUMBERS, to_ours, to_theirs
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import Samples
from la_reconvla.errors import UserError
from la_reconvla.robot import LIBERO_ACTIONS

HALVES = np.array([0.5] * 6 + [1.0])
HEADER = b"\x93NUMPY\x01\x00"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    calvin_layout.write(tmp_path / "task_ABC_D")
    return tmp_path / "task_ABC_D"


def annotated(root: Path, edit: Callable[[dict], Any]) -> None:
    held = calvin_layout.annotations(12)
    edit(held)
    np.save(root / "training" / ANNOTATIONS, held, allow_pickle=True)


def pickled(path: Path, content: bytes) -> Path:
    """A ``.npy`` file of one object, whose pickle is `content`."""
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    text += b" " * (63 - (len(HEADER) + 2 + len(text)) % 64) + b"\n"
    path.write_bytes(HEADER + struct.pack("<H", len(text)) + text + content)
    return path


@pytest.mark.parametrize("named", ["root", "split"])
def test_segments_are_episodes(root: Path, named: str) -> None:
    opened = open_demonstrations(root if named == "root" else root / "training")
    assert [e.instruction for e in opened.episodes[:3]] == list(calvin_layout.INSTRUCTIONS.values())
    assert (len(opened.episodes), opened.state_width, opened.cameras) == (12, 15, ("static", "gripper"))
    assert (opened.orientation, opened.episodes[0].rate, opened.space) == ("upright", 30.0, CALVIN_ACTIONS)
    for number in (0, 7):
        episode, first = opened.episodes[number], FIRST + LENGTH * number
        frames = [calvin_layout.frame(first + step) for step in range(LENGTH)]  # the last one included
        for camera in opened.cameras:
            expected = np.stack([frame[f"rgb_{camera}"] for frame in frames])
            np.testing.assert_array_equal(episode.pictures(camera), expected)
        actions = np.stack([frame["rel_actions"] for frame in frames])
        np.testing.assert_allclose(episode.actions[:, :6], actions[:, :6], rtol=1e-6)
        assert episode.actions[:, 6].tolist() == [-1, -1, -1, 1, 1, 1]  # theirs opened with +1
        np.testing.assert_allclose(episode.proprio(), np.stack([f["robot_obs"] for f in frames]), rtol=1e-6)
    assert opened.space != LIBERO_ACTIONS  # an action head for LIBERO's robot is not taken for this one's


def test_the_gripper_is_turned_and_turned_back() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7))
    np.testing.assert_array_equal(to_theirs(to_ours(actions)), actions)
    np.testing.assert_array_equal(to_ours(actions)[:, :6], actions[:, :6])
    np.testing.assert_array_equal(to_ours(actions)[:, 6], -actions[:, 6])


def test_samples_are_made_of_both_cameras_and_the_state(root: Path) -> None:
    samples = Samples(open_demonstrations(root), 32, 4, wrist=True, proprio=15)
    batch = samples.batch(np.array([0, 5]))
    assert batch.wrist is not None
    assert batch.proprio is not None
    assert (tuple(batch.images.shape), tuple(batch.wrist.shape)) == ((2, 3, 32, 32), (2, 3, 32, 32))
    assert batch.proprio.shape == (2, 15)
    assert batch.valid.tolist() == [[True] * 4, [True, False, False, False]]


def test_segments_that_share_frames_are_not_torn(root: Path) -> None:
    annotated(
        root,
        lambda held: held["info"].update(
            indx=[(a - 2 * (n % 3 == 1), b) for n, (a, b) in enumerate(held["info"]["indx"])]
        ),
    )
    opened = open_demonstrations(root)
    scenes = [episode.scene for episode in opened.episodes]
    assert [scenes[n] == scenes[n + 1] for n in range(5)] == [True, False, False, True, False]
    training, held_out = opened.divide(0.3)
    assert not {e.scene for e in training.episodes} & {e.scene for e in held_out.episodes}


def shared_lists(depth: int) -> list:
    """Small in a file, and longer in words than any memory."""
    return [0] if depth == 0 else [shared := shared_lists(depth - 1), shared]


def test_other_frames_in_the_place_of_gathered_ones_are_read(root: Path) -> None:
    before = open_demonstrations(root)
    for number in range(FIRST, FIRST + LENGTH * 12):
        held = calvin_layout.frame(number)
        path = root / f"training/episode_{number:07d}.npz"
        np.savez_compressed(path, **{**held, "rel_actions": held["rel_actions"] * HALVES})
    after = open_demonstrations(root)
    np.testing.assert_allclose(after.episodes[5].actions, before.episodes[5].actions * HALVES, rtol=1e-6)
    (root / "training" / NUMBERS).write_bytes(b"")
    assert open_demonstrations(root).hash == after.hash


def test_actions_and_states_are_gathered_once(root: Path) -> None:
    first = open_demonstrations(root)
    (root / "training/episode_0000041.npz").write_bytes(b"damaged later")
    again = open_demonstrations(root)
    np.testing.assert_array_equal(again.episodes[0].actions, first.episodes[0].actions)
    with pytest.raises(UserError, match=r"episode_0000041.npz.*download the split again"):
        again.episodes[0].frames()
    (root / "training" / NUMBERS).write_bytes(b"cut off")
    with pytest.raises(UserError, match="episode_0000041"):
        open_demonstrations(root)


def test_frames_that_are_missing_or_of_another_kind_are_named(root: Path) -> None:
    path = root / "training/episode_0000050.npz"
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"0000050.npz.*download the split again"):
            open_demonstrations(root)
    path.unlink()
    with pytest.raises(UserError, match=r"0000050.npz.*not there"):
        open_demonstrations(root)
    np.savez(path, **{**calvin_layout.frame(50), "rel_actions": np.full(7, np.nan)})
    with pytest.raises(UserError, match="7 finite numbers"):
        open_demonstrations(root)
    np.savez(path, **{**calvin_layout.frame(50), "rel_actions": np.array([{}] * 7, dtype=object)})
    with pytest.raises(UserError, match=r"0000050\.npz"):
        open_demonstrations(root)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda held: held.pop("info"), "no words, subtasks and ends"),
        (lambda held: held["language"].pop("task"), "no words, subtasks and ends"),
        (lambda held: held["language"]["ann"].pop(), "11 instructions, 12 subtasks"),
        (lambda held: held["language"]["ann"].__setitem__(0, 5), "is no instruction"),
        (lambda held: held["info"]["indx"].__setitem__(0, (9, 3)), r"frame \(9, 3\)"),
        (lambda held: held["info"].update(indx=3), "no words, subtasks and ends"),
        (lambda held: held["info"]["indx"].__setitem__(0, (9, float("inf"))), "no words, subtasks and ends"),
        (lambda held: held["info"]["indx"].__setitem__(0, (FIRST, FIRST + 5.5)), r"45\.5 is no frame's number"),
        (lambda held: held["info"].update(indx=np.array(held["info"]["indx"]) + 0.5), r"40\.5\)? is no frame's number"),
        (lambda held: held["info"]["indx"].__setitem__(0, (9, 1 << 20_000)), "no words, subtasks and ends"),
        (lambda held: held["info"]["indx"].__setitem__(0, (9, 1 << 36)), r"frame \(9, 68719476736\)"),
        (lambda held: held["language"]["ann"].__setitem__(0, shared_lists(60)), "is no instruction"),
        (
            lambda held: held["language"].update(task=["close_drawer", "open_drawer", "lift_red_block_table"] * 4),
            "16 September 2022",
        ),
    ],
    ids=[
        "no ends",
        "no subtasks",
        "too few",
        "no text",
        "backwards",
        "no list",
        "endless",
        "between frames",
        "all between frames",
        "huge",
        "long",
        "deep",
        "other",
    ],
)
def test_annotations_that_do_not_fit_are_refused(root: Path, edit: Callable[[dict], Any], match: str) -> None:
    annotated(root, edit)
    with pytest.raises(UserError, match=match) as caught:
        open_demonstrations(root)
    assert "download the annotations again" in str(caught.value)


def test_annotations_that_are_missing_or_cut_off(root: Path) -> None:
    path = root / "training" / ANNOTATIONS
    content = path.read_bytes()
    for damaged in (content[:50], content[:-1], content[: len(content) // 3]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="download the annotations again"):
            open_demonstrations(root)
    path.unlink()
    with pytest.raises(UserError, match="no frame has words"):
        open_demonstrations(root)


def test_a_data_set_without_its_training_is_asked_for_its_split(tmp_path: Path) -> None:
    calvin_layout.write(tmp_path, split="validation")
    with pytest.raises(UserError, match="name the split itself"):
        open_demonstrations(tmp_path)
    assert len(open_demonstrations(tmp_path / "validation").episodes) == 12


# ---------------------------------------------------------------- hostile pickles


class Runs:
    """Its pickle calls a function."""

    def __init__(self, function: Callable, *arguments: Any):
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("inside", [False, True])
def test_no_function_is_called(tmp_path: Path, protocol: int, inside: bool) -> None:
    made = tmp_path / "made"
    evil = Runs(os.system, f"touch {made}")
    held: Any = {"language": {"ann": ["a", [{"deep": evil}]]}} if inside else evil
    array = np.empty((), dtype=object)
    array[()] = held
    path = pickled(tmp_path / "x.npy", pickle.dumps(array, protocol))
    with pytest.raises(UserError, match=r"posix.system|only numpy's arrays"):
        read_object(path, "download it again")
    assert not made.exists()
    np.load(path, allow_pickle=True)  # so it is a pickle that works
    assert made.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x09.",  # a protocol that does not exist
        b"",
        b"\x80\x04K\x01.",  # no array
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02cnumpy.core.multiarray\nfromstring\n.",
        b"\x80\x02cbuiltins\ngetattr\n.",
        b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftR.",  # an array of exabytes
        b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00V\x85R.",
        b"\x80\x04r\xff\xff\xff\xff.",  # a memo of four billions
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # eight exabytes follow
        b"(" * 100_000,
        b"\x80\x02cnumpy\ndtype\n}X\x05\x00\x00\x00valueK\x01sb.",  # the state of a class
        b"\x80\x04\x8c\x01aQ.",  # a persistent id
    ],
)
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match="download it again"):
        read_object(pickled(tmp_path / "x.npy", content), "download it again")


def test_arrays_of_impossible_sizes_and_types_are_refused(tmp_path: Path) -> None:
    """Each of these, given to numpy, reserves memory without end or reads numbers as pointers."""
    objects = np.array([1, 2, "x"], dtype=object)
    for content in (
        edited(wrapped(np.arange(3)), b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
        edited(wrapped(objects), b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
        wrapped(np.zeros(2, dtype=[("a", "i4")])),
    ):
        with pytest.raises(UserError, match="download it again"):
            read_object(pickled(tmp_path / "x.npy", content), "download it again")
    flagged = edited(wrapped(np.arange(2)), b"K\x00tq", b"K\x3ftq")  # numbers whose type says that they are objects
    held = read_object(pickled(tmp_path / "x.npy", flagged), "download it again")
    np.testing.assert_array_equal(held.value, [0, 1])  # numbers they stay


def called(module: str, name: str, arguments: bytes) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode() + arguments + b"R"


def test_no_class_of_the_reader_is_changed(tmp_path: Path) -> None:
    """A state for a class is set as its attributes, and would be there when the next file is read."""
    for names in (b"_codecs\nencode\n", b"numpy\nndarray\n", b"numpy.core.multiarray\nscalar\n"):
        content = b"\x80\x04c" + names + b"(N}\x8c\x07__new__cnumpy\nndarray\nstb."
        with pytest.raises(UserError, match="sets the state of something else"):
            read_object(pickled(tmp_path / "x.npy", content), "download it again")
    test_values_are_those_that_numpy_wrote(tmp_path)


def test_small_files_fill_no_memory_and_no_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("la_reconvla.data.arrays_only.LARGEST", 1 << 23)
    text, many = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20), 20
    dtype = called("numpy", "dtype", b"(\x8c\x08S1048576\x89\x88t")
    twice = b"".join(b"h" + bytes([n, ord("h"), n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
    nested = b"".join(b"](h" + bytes([n, ord("h"), n]) + b"eq" + bytes([n + 1]) for n in range(60))
    started = time.perf_counter()
    for content in (
        b"\x96" + struct.pack("<Q", 1 << 35),  # a bytearray of 32 GiB
        b"](" + text + b"q\0" + called("_codecs", "encode", b"(h\0\x8c\x06latin1t") * many + b"e",
        b"](B" + text[1:] + b"q\0" + dtype + b"q\1"
        b"" + called("numpy.core.multiarray", "scalar", b"(h\1h\0t") * many + b"e",
        b"K\1q\0" + twice + b"}h\x3cNs",  # a hash of 2^60 numbers
        b"](K\1q\0" + twice + b"(h\x3cNde",
        b"K\1q\0" + nested + called("numpy", "dtype", b"(h\x3ct"),  # a name of 2^60 letters in the message
        b"K\1q\0" + nested + called("_codecs", "encode", b"(\x8c\1ah\x3ct"),
        b"cnumpy.core.multiarray\n_reconstruct\n)\x81",  # an array without a content
    ):
        with pytest.raises(UserError, match="download it again"):
            read_object(pickled(tmp_path / "x.npy", b"\x80\x05" + content + b"."), "download it again")
    assert time.perf_counter() - started < 20


def test_an_array_of_objects_is_no_copy_of_its_list(tmp_path: Path) -> None:
    box = np.empty((), dtype=object)
    box[()] = [np.array(["x"] * 5, dtype=object)]
    held = read_object(pickled(tmp_path / "x.npy", pickle.dumps(box, 4)), "download it again")
    before = held[0].value
    held[0].__setstate__((1, (5,), Dtype("O8"), False, before))
    assert held[0].value is before


def edited(content: bytes, before: bytes, after: bytes) -> bytes:
    assert before in content
    return content.replace(before, after)


def wrapped(array: np.ndarray) -> bytes:
    """Pickle of one object that is this array."""
    box = np.empty((), dtype=object)
    box[()] = array
    return pickle.dumps(box, 3)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = pickled(tmp_path / "x.npy", wrapped(np.arange(2)))
    with path.open("ab") as file:
        file.truncate(2 << 30)  # holes, that take no room
    with pytest.raises(UserError, match=r"2.1 GB, which no annotations need"):
        read_object(path, "download it again")


def test_values_are_those_that_numpy_wrote(tmp_path: Path) -> None:
    value = {
        "words": ["a", "é"],
        "numbers": np.arange(6.0, dtype=">f4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "text": np.array(["ab", "c"]),
        "bytes": np.array([b"ab", b"c"]),
        "one": np.float32(2.5),
        "pairs": [(np.int64(3), 4)],
        "objects": np.array(["x", None], dtype=object),
    }
    for protocol in (2, 3, 4):  # numpy has written 2 to 4
        box = np.empty((), dtype=object)
        box[()] = value
        found = read_object(pickled(tmp_path / "x.npy", pickle.dumps(box, protocol)), "")
        assert found.keys() == value.keys()
        for name, expected in value.items():
            mine = found[name].value if isinstance(found[name], Array) else found[name]
            if isinstance(expected, np.ndarray) and expected.dtype != object:
                np.testing.assert_array_equal(mine, expected)
                assert mine.dtype == expected.dtype
            else:
                assert mine == (list(expected) if isinstance(expected, np.ndarray) else expected)


def test_what_the_format_does_not_have_is_said(root: Path) -> None:
    """CALVIN's last two numbers are a joint and a command, no fingers."""
    episode = open_demonstrations(root).episodes[0]
    for read in (episode.fingers, episode.first_state, episode.states, lambda: episode.pictures("top")):
        with pytest.raises(UserError, match="segment_00000 has no"):
            read()
    np.testing.assert_array_equal(episode.executed(), episode.actions)
