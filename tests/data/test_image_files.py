"""Pictures of every kind come out as a person sees them; what cannot be read is said in a sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from la_reconvla.data.image_files import read_picture
from la_reconvla.errors import UserError

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 12)
COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of these bytes, written by hand from the format's own description."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_plain_pictures_come_back(kind: str) -> None:
    given = COLOURS if kind != "GIF" else np.repeat(RAMP[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(given), kind)), given)


def test_sixteen_bits_of_grey_are_scaled() -> None:
    values = np.array([[0, 256, 257, 32896, 65535, 128]], np.uint16)
    content = png(6, 1, 16, 0, b"\x00" + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_picture(content)[0, :, 1], [0, 1, 1, 128, 255, 0])


def test_sixteen_bits_of_colour_are_scaled() -> None:
    values = np.array([[[0, 257, 65535], [32896, 65535, 514]]], np.uint16)
    content = png(2, 1, 16, 2, b"\x00" + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_picture(content), [[[0, 1, 255], [128, 255, 2]]])


@pytest.mark.parametrize("values", [np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.int32), np.ones((2, 2))])
def test_numbers_that_are_no_picture_are_refused(values: np.ndarray) -> None:
    content = saved(Image.fromarray(values.astype(np.float32) if values.dtype.kind == "f" else values), "TIFF")
    with pytest.raises(UserError, match="beyond 16 bits"):
        read_picture(content)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
        (8, lambda p: np.rot90(p)),
    ],
)
def test_a_camera_that_was_held_otherwise(orientation: int, turned: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(COLOURS), exif=exif)), turned(COLOURS))


def test_what_is_transparent_is_laid_on_white() -> None:
    alpha = np.array([0, 51, 255], np.uint8)
    given = np.concatenate([np.full((1, 3, 3), 100, np.uint8), alpha[None, :, None]], axis=-1)
    expected = np.round(255 + (100 - 255.0) * alpha / 255)
    found = read_picture(saved(Image.fromarray(given)))
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1)
    grey = Image.fromarray(given[..., [0, 3]])
    np.testing.assert_array_equal(read_picture(saved(grey)), found)


def test_palettes() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
    picture.putdata([0, 1, 2])
    np.testing.assert_array_equal(read_picture(saved(picture)), [[[10, 20, 30], [200, 100, 0], [1, 2, 3]]])
    np.testing.assert_array_equal(
        read_picture(saved(picture, transparency=1)), [[[10, 20, 30], [255, 255, 255], [1, 2, 3]]]
    )


def test_cmyk_and_black_and_white() -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    expected = [[[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]]
    np.testing.assert_array_equal(read_picture(saved(Image.fromarray(inks, "CMYK"), "TIFF")), expected)
    jpeg = read_picture(saved(Image.fromarray(inks.repeat(16, 0).repeat(16, 1), "CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(jpeg[8, 8::16], expected[0], atol=12)
    bits = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(read_picture(saved(bits)), [[[255] * 3, [0] * 3]])


def test_pictures_that_unpack_to_gigabytes_are_refused() -> None:
    """400 million pixels in 50 kB; what Pillow itself refuses, and what it only warns of."""
    for side in (20_000, 11_000):
        with pytest.raises(UserError, match="more than 100 million pixels: give a smaller"):
            read_picture(png(side, side, 8, 2, bytes(50)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    whole = saved(Image.fromarray(COLOURS.repeat(20, 0).repeat(20, 1)), kind)
    for kept in (0, 10, len(whole) // 2):
        (tmp_path / "scene").write_bytes(whole[:kept])
        with pytest.raises(UserError, match="scene is no picture that can be read"):
            read_picture(tmp_path / "scene")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: give a picture"):
        read_picture(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="cannot be read"):
        read_picture(tmp_path)
