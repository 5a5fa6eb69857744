"""TFRecord files and `tf.train.Example`, against published checksums, protobuf itself, and damage at known places."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from la_reconvla.data import tfrecord
from la_reconvla.data.tfrecord import data_of, features_in, masked_checksum, records_in
from la_reconvla.errors import UserError


def castagnoli(data: bytes) -> int:
    """CRC-32C a bit at a time, by its definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """A record, as TensorFlow writes it."""

    def checksum(content: bytes) -> bytes:
        crc = castagnoli(content)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def example_class() -> Any:
    """`tf.train.Example` of protobuf, from its definition in TensorFlow's example.proto and feature.proto."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example_of_a_test.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, Any, int, str]) -> Any:
        made = file.message_type.add(name=name)
        for label, number, kind, count, of in fields:
            made.field.add(name=label, number=number, type=kind, label=count, type_name=of or None)
        return made

    many, one, inner = kinds.LABEL_REPEATED, kinds.LABEL_OPTIONAL, kinds.TYPE_MESSAGE
    message("BytesList", ("value", 1, kinds.TYPE_BYTES, many, ""))
    message("FloatList", ("value", 1, kinds.TYPE_FLOAT, many, ""))
    message("Int64List", ("value", 1, kinds.TYPE_INT64, many, ""))
    lists = (("bytes_list", 1, ".t.BytesList"), ("float_list", 2, ".t.FloatList"), ("int64_list", 3, ".t.Int64List"))
    message("Feature", *((name, number, inner, one, of) for name, number, of in lists))
    features = message("Features", ("feature", 1, inner, many, ".t.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=one)
    entry.field.add(name="value", number=2, type=inner, label=one, type_name=".t.Feature")
    message("Example", ("features", 1, inner, one, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def example(**features: Any) -> bytes:
    made = example_class()()
    for name, values in features.items():
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0]) if values else bytes]
        getattr(made.features.feature[name], kind).value.extend(values)
    return made.SerializeToString()


WRITTEN = {
    "floats": [0.5, -1.25, 3e38],
    "words": [b"one", b"", b"\xff" * 300],
    "numbers": [0, 1, -1, 2**62, -(2**63)],
    "none": [],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.tfrecord"
    path.write_bytes(framed(example(**WRITTEN)) + framed(b"") + framed(example(floats=[7.0])))
    return path


def test_the_checksum_is_the_published_one() -> None:
    """RFC 3720, appendix B.4, and the check value of CRC-32/ISCSI."""
    assert google_crc32c.value(bytes(32)) == castagnoli(bytes(32)) == 0x8A9136AA
    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert masked_checksum(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32


def test_protobufs_own_messages_are_read(file: Path) -> None:
    first, second, third = records_in(file)
    for data in (None, data_of(first)):
        found = features_in(first, WRITTEN, data)
        assert found["words"] == WRITTEN["words"]
        assert found["none"] == []
        np.testing.assert_array_equal(found["floats"], np.array(WRITTEN["floats"], np.float32))
        np.testing.assert_array_equal(found["numbers"], np.array(WRITTEN["numbers"], np.int64))
    assert features_in(second, WRITTEN) == {}
    assert features_in(third, ["floats", "absent"])["floats"] == [7.0]
    assert [one.offset for one in (first, second)] == [0, first.length + 16]


def test_unpacked_lists_are_read_too(tmp_path: Path) -> None:
    """Protobuf lets a writer give one number a field; the last list of a feature counts."""
    floats = b"".join(b"\x0d" + struct.pack("<f", value) for value in (1.5, -2.0))
    feature = b"\x0a\x00" + b"\x12" + bytes([len(floats)]) + floats
    numbers = b"\x1a\x04" + b"\x08\x05\x08\x06"

    def entry(key: bytes, value: bytes) -> bytes:
        inner = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
        return b"\x0a" + bytes([len(inner)]) + inner

    entries = entry(b"f", feature) + entry(b"n", numbers)
    path = tmp_path / "x.tfrecord"
    path.write_bytes(framed(b"\x0a" + bytes([len(entries)]) + entries))
    found = features_in(records_in(path)[0], ("f", "n"))
    np.testing.assert_array_equal(found["f"], [1.5, -2.0])
    np.testing.assert_array_equal(found["n"], [5, 6])


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flipped(0), r"record at byte 0: .*checksum \(CRC-32C\) of its length"),
        (flipped(9), r"record at byte 0: .*checksum \(CRC-32C\) of its length"),
        (lambda content: content[:-1], r"record at byte {last}: .*the file ends in it"),
        (lambda content: content + b"abc", r"record at byte {end}: .*the file ends in it"),
        (lambda content: b"\x89PNG" + content, r"record at byte 0: .*checksum"),
    ],
)
def test_a_file_whose_framing_is_damaged_is_named_with_the_place(file: Path, harm: Any, said: str) -> None:
    content, last = file.read_bytes(), records_in(file)[-1].offset
    file.write_bytes(harm(content))
    with pytest.raises(UserError, match=f"x.tfrecord: the {said.format(last=last, end=len(content))}.*download"):
        records_in(file)


def test_damaged_data_are_named_with_the_place(file: Path) -> None:
    last = records_in(file)[-1]
    file.write_bytes(flipped(last.offset + 12 + last.length - 1)(file.read_bytes()))
    for record in records_in(file)[:2]:
        data_of(record)
    with pytest.raises(UserError, match=rf"x.tfrecord: the record at byte {last.offset}: .*checksum \(CRC-32C\)"):
        data_of(last)


def test_no_message_however_wrong_is_more_than_refused(tmp_path: Path) -> None:
    """Every byte of a message in turn becomes every other of some kind; lengths reach beyond the end, numbers too."""
    good, path, refused = example(**WRITTEN), tmp_path / "x.tfrecord", []
    for at in range(0, len(good), 3):
        for value in (0, 0x7F, 0x80, 0xFF, 0x0B):
            path.write_bytes(framed(good[:at] + bytes([value]) + good[at + 1 :]))
            try:
                features_in(records_in(path)[0], WRITTEN)
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > 50
    assert all("x.tfrecord: the record at byte 0" in said for said in refused)


def test_without_the_package_its_command_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(tfrecord.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"google-crc32c.*install it: .*pip install -e .*\[rlds\]"):
        records_in(file)
    with pytest.raises(UserError, match="no such file"):
        records_in(file.with_name("absent"))
