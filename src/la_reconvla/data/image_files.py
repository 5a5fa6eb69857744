"""Reads a picture from a file or from its bytes: the one place that does, so that none comes out wrong in silence."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from la_reconvla.errors import UserError

MAX_PIXELS = 100_000_000
"""More is refused before it is decoded: no camera of a robot gives that, and some small files unpack to gigabytes."""
# What Pillow raises where a damaged file gives another size or kind of something.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)
_DAMAGE += (struct.error, EOFError, RuntimeError)


def read_picture(source: Path | bytes, where: str | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """An RGB picture as a person sees it.

    It is turned as its EXIF data say; 16 bits are scaled to 8; palettes, grey and CMYK become RGB; what is transparent
    is laid on white; of an animation the first picture is taken.

    Args:
        source: a file, or what one holds.
        where: names it in messages; its path by default.

    Raises:
        UserError: it is missing, may not be read, is too large, damaged or no picture, or has values beyond 16 bits.
    """
    where = where or (str(source) if isinstance(source, Path) else "the picture")
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except FileNotFoundError as error:
        raise UserError(f"{where} does not exist: give a picture, a PNG or JPEG") from error
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}): give a picture that you may read") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and of odd metadata
            with Image.open(io.BytesIO(content)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise UserError(_too_large(where, f"{picture.width} x {picture.height} pixels are"))
                ImageOps.exif_transpose(picture, in_place=True)
                return np.asarray(_rgb(picture, where))
    except Image.DecompressionBombError as error:
        raise UserError(_too_large(where, "it is")) from error
    except _DAMAGE as error:
        raise UserError(f"{where} is no picture that can be read ({error}): give a PNG or JPEG") from error


def _too_large(where: str, what: str) -> str:
    return f"{where}: {what} more than {MAX_PIXELS // 10**6} million pixels: give a smaller picture"


def _rgb(picture: Image.Image, where: str) -> Image.Image:
    if picture.mode.startswith(("I", "F")):  # Pillow cuts these off at 255, which leaves white
        return _from_deep(np.asarray(picture), where).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _from_deep(values: np.ndarray, where: str) -> Image.Image:
    """16 bits in 8: v / 257, so that 65535 becomes 255."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise UserError(f"{where} has values beyond 16 bits: save it as a PNG or JPEG of 8 bits a colour")
    return Image.fromarray((values.astype(np.float32) / 257).round().astype(np.uint8))
