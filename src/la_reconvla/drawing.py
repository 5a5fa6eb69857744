"""Pictures of what policies see, as PNG, and videos.

Nothing here touches matplotlib's global state, and equal input gives equal bytes.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from la_reconvla.errors import UserError
from la_reconvla.storage import atomic_write

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".mp4": "video/mp4"}


def readable(name: str) -> str:
    """A field's or a floor's name for people."""
    return name.replace("_", " ")


# ---------------------------------------------------------------- pictures


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    saliency: Float[np.ndarray, " n"],
    grid: tuple[int, int],
    most: float | None = None,
) -> np.ndarray:
    """`image` with `saliency` as heat over it, patch by patch: what the map really is, not smoothed.

    Args:
        image: uint8 picture.
        saliency: one score per patch, row by row; only their proportions matter.
        grid: rows and columns of patches.
        most: what is brightest, as a multiple of a patch's equal share (`shares`), with nothing at 0; by default the
            picture's largest score is brightest and its smallest darkest.

    Returns:
        uint8 [H W 3].

    Raises:
        UserError: if the number of scores is not that of the grid, or the image is not uint8 [H W 3].
    """
    scores = np.asarray(saliency, dtype=np.float64)
    if scores.size != grid[0] * grid[1] or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"cannot lay {scores.shape} scores on a {grid} grid over an image {image.shape} {image.dtype}")
    spread = float(np.ptp(scores))
    if most is not None:
        relative = np.clip(shares(scores) / most, 0, 1)
    else:
        relative = (scores - scores.min()) / spread if spread > 0 else np.zeros_like(scores)
    heat = _per_pixel(relative.reshape(grid), image.shape[:2])[..., None]
    colour = colormaps["inferno"](heat[..., 0])[..., :3] * 255
    opacity = 0.2 + 0.5 * heat
    return (image * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def shares(scores: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b n"]:
    """Scores of patches as multiples of the share that each had if all had the same."""
    total = scores.sum(-1, keepdims=True)
    return np.divide(scores * scores.shape[-1], total, out=np.ones_like(scores), where=total > 0)


def _per_pixel(patches: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Each patch's value at all of its pixels, also where the grid does not divide the image."""
    rows = np.arange(shape[0]) * patches.shape[0] // shape[0]
    columns = np.arange(shape[1]) * patches.shape[1] // shape[1]
    return patches[np.ix_(rows, columns)]


def painted_in(
    image: UInt8[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, " n"],
    painted: UInt8[np.ndarray, "H W 3"],
    grid: tuple[int, int],
) -> UInt8[np.ndarray, "H W 3"]:
    """`image` with the patches that `mask` hides taken from `painted`, and a line around them."""
    hidden = _per_pixel(mask.reshape(grid), image.shape[:2])[..., None]
    return edged(np.where(hidden, painted, image), mask, grid)


def edged(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, " n"], grid: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """`image` with a white line of one pixel along the inner edge of the True patches of `mask`."""
    hidden = np.pad(_per_pixel(mask.reshape(grid), image.shape[:2]), 1)
    inner = hidden[:-2, 1:-1] & hidden[2:, 1:-1] & hidden[1:-1, :-2] & hidden[1:-1, 2:]
    return np.where((hidden[1:-1, 1:-1] & ~inner)[..., None], np.uint8(255), image)


def small_png(image: UInt8[np.ndarray, "H W 3"], side: int) -> bytes:
    """`image` as a PNG of few colours and at most `side` pixels per side: hundreds of them fit into one page."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.quantize(96, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def attention_grid(
    images: UInt8[np.ndarray, "f H W 3"],
    instructions: Sequence[str],
    maps: Mapping[str, Float[np.ndarray, "f n"]],
    grid: tuple[int, int],
    masks: Mapping[str, Bool[np.ndarray, "f n"]] | None = None,
    targets: Bool[np.ndarray, "f R C"] | None = None,
) -> bytes:
    """Attention maps of all conditions on the same frames, on one scale with its colour bar, as PNG.

    Rows are frames under their instruction; columns are the image and then each condition. Patches that the condition
    masks are outlined in white, the target in blue.

    Args:
        images: the frames.
        instructions: what the robot was asked to do in each.
        maps: saliency of each condition.
        grid: rows and columns of patches.
        masks: patches that a condition reconstructs, where it has any.
        targets: where the target shows in each frame, at any resolution.
    """
    rows, columns = len(images), 1 + len(maps)
    most = max(float(shares(np.asarray(scores, np.float64)).max()) for scores in maps.values())
    figure = Figure(figsize=(1.7 * columns, 1.95 * rows + 0.8), layout="constrained")
    *strips, bar = figure.subfigures(rows + 1, 1, squeeze=False, height_ratios=[*[1.0] * rows, 0.3])[:, 0]
    for i, strip in enumerate(strips):
        strip.suptitle(instructions[i], fontsize=9, x=0.01, ha="left")
        cells = strip.subplots(1, columns, squeeze=False)[0]
        _show(cells[0], images[i], "image")
        for axes, (name, scores) in zip(cells[1:], maps.items(), strict=True):
            _show(axes, overlay(images[i], scores[i], grid, most), name)
            if masks and name in masks:
                axes.add_collection(_outline(masks[name][i].reshape(grid), images[i].shape[:2]))
        if targets is not None:
            for axes in cells:
                axes.add_collection(_outline(targets[i], images[i].shape[:2], "deepskyblue"))
    colours = ScalarMappable(Normalize(0, most), "inferno")
    said = bar.colorbar(colours, cax=bar.subplots(), orientation="horizontal")
    said.set_label("attention of a patch; 1 is an equal share", fontsize=8)
    said.ax.tick_params(labelsize=8)
    return _png(figure)


def head_grid(
    image: UInt8[np.ndarray, "H W 3"],
    title: str,
    layers: Mapping[str, Float[np.ndarray, "h n"]],
    grid: tuple[int, int],
) -> bytes:
    """Attention maps of every head on one image, as PNG; rows are layers, columns their mean and then each head.

    Each map has its scale: heads differ in how much they attend to the image at all; the titles give it.

    Args:
        image: the frame.
        title: of the picture.
        layers: maps of the heads of each layer, by the layer's name.
        grid: rows and columns of patches.
    """
    columns = 1 + max(len(heads) for heads in layers.values())
    figure = Figure(figsize=(1.4 * columns, 1.65 * len(layers) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    for cells, (name, heads) in zip(figure.subplots(len(layers), columns, squeeze=False), layers.items(), strict=True):
        shown = {name: heads.mean(0), **{f"head {i}: {head.sum():.2f}": head for i, head in enumerate(heads)}}
        for axes, (label, scores) in zip(cells, shown.items(), strict=True):
            _show(axes, overlay(image, scores, grid), label)
    return _png(figure)


def reconstruction_rows(
    images: UInt8[np.ndarray, "f H W 3"],
    instructions: Sequence[str],
    arms: Mapping[str, tuple[UInt8[np.ndarray, "f H W 3"], UInt8[np.ndarray, "f H W 3"]]],
) -> bytes:
    """What every arm's head was asked for and what it made, on the same frames, as PNG.

    The first row is the images under their instructions; then each arm has one row, two pictures a frame.

    Args:
        images: the frames.
        instructions: of each.
        arms: for each arm the frames as its head was shown or asked for them, and what it made of them.
    """
    figure = Figure(figsize=(2.5 * len(images), 1.35 * (1 + len(arms)) + 0.2), layout="constrained")
    strips = figure.subfigures(1 + len(arms), 1, squeeze=False)[:, 0]
    for axes, image, told in zip(
        strips[0].subplots(1, len(images), squeeze=False)[0], images, instructions, strict=True
    ):
        _show(axes, image, "\n".join(textwrap.wrap(told, 34)))
    for strip, (name, (shown, made)) in zip(strips[1:], arms.items(), strict=True):
        strip.supylabel(name, fontsize=9)
        cells = strip.subplots(1, 2 * len(images), squeeze=False)[0]
        for i, picture in enumerate(zip(shown, made, strict=True)):
            for axes, one, title in zip(cells[2 * i :], picture, ("shown", "made of it"), strict=False):
                _show(axes, one, title)
    return _png(figure)


def hidden_out(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, " n"], grid: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """`image`, grey where `mask` hides it."""
    return np.where(_per_pixel(mask.reshape(grid), image.shape[:2])[..., None], np.uint8(128), image)


def reconstruction_strip(
    images: UInt8[np.ndarray, "f H W 3"],
    masks: Bool[np.ndarray, "f n"],
    predictions: UInt8[np.ndarray, "f H W 3"],
    grid: tuple[int, int],
    instructions: Sequence[str],
    saliency: Float[np.ndarray, "f n"] | None,
) -> bytes:
    """Image, attention if it chose the mask, what the decoder was shown, and its prediction, one frame per row, as PNG.

    Args:
        images: the frames.
        masks: True at patches to reconstruct.
        predictions: predicted pixels of full frames; only masked patches are taken from them.
        grid: rows and columns of patches.
        instructions: a title for each row.
        saliency: the map that the masks follow; None for masks that follow none.
    """
    rows = []
    for i, (image, mask, predicted) in enumerate(zip(images, masks, predictions, strict=True)):
        hidden = _per_pixel(mask.reshape(grid), image.shape[:2])[..., None]
        rows.append(
            [
                ("image", image),
                *([("attention", overlay(image, saliency[i], grid))] if saliency is not None else []),
                ("masked", hidden_out(image, mask, grid)),
                ("reconstructed", np.where(hidden, predicted, image)),
            ]
        )
    return _strip(rows, instructions)


def _strip(rows: Sequence[Sequence[tuple[str, np.ndarray]]], instructions: Sequence[str]) -> bytes:
    figure = Figure(figsize=(1.87 * len(rows[0]), 2.05 * len(rows) + 0.3), layout="constrained")
    for i, strip in enumerate(figure.subfigures(len(rows), 1, squeeze=False)[:, 0]):
        strip.suptitle(instructions[i], fontsize=9, x=0.01, ha="left")
        for axes, (title, picture) in zip(strip.subplots(1, len(rows[i])), rows[i], strict=True):
            _show(axes, picture, title)
    return _png(figure)


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _outline(mask: np.ndarray, shape: tuple[int, ...], colour: str = "white") -> LineCollection:
    """Lines around the True patches of `mask` [rows columns], in pixels of an image of `shape`."""
    padded = np.pad(mask, 1).astype(int)
    height, width = shape[0] / mask.shape[0], shape[1] / mask.shape[1]
    across = np.argwhere(np.diff(padded, axis=0)[:, 1:-1])  # an edge above row r, over column c
    along = np.argwhere(np.diff(padded, axis=1)[1:-1])
    lines = [[(c * width, r * height), ((c + 1) * width, r * height)] for r, c in across]
    lines += [[(c * width, r * height), (c * width, (r + 1) * height)] for r, c in along]
    return LineCollection(list(np.array(lines).reshape(-1, 2, 2) - 0.5), colors=colour, linewidths=0.9)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


# ---------------------------------------------------------------- videos


def write_video(path: Path | str, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: int = 10) -> None:
    """Write an H.264 video that every browser plays, atomically.

    Args:
        path: an ``.mp4`` file.
        frames: uint8 pictures of one size.
        fps: pictures per second.

    Raises:
        UserError: there are no frames, or they differ in size or type.
    """
    pictures = [np.ascontiguousarray(frame) for frame in frames]
    if not pictures or len({p.shape for p in pictures}) > 1 or pictures[0].ndim != 3 or pictures[0].dtype != np.uint8:
        raise UserError(f"{path}: a video needs at least one frame, all uint8 [H W 3] and of one size")
    height, width, _ = pictures[0].shape
    with atomic_write(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,  # 4:2:0 chroma needs even sides
            ffmpeg_log_level="error",
            output_params=["-preset", "veryfast", "-movflags", "+faststart", "-threads", "1"],
        )
        try:
            writer.send(None)
            for picture in pictures:
                writer.send(picture)
            writer.close()
        except OSError as error:  # ffmpeg has died; a broken pipe does not tell why
            raise UserError(f"{path}: the video could not be written ({error}); is the disk full?") from error
        if imageio_ffmpeg.count_frames_and_secs(str(temporary))[0] != len(pictures):
            raise UserError(f"{path}: the video was cut short; is the disk full?")


def write_gif(path: Path | str, frames: Sequence[UInt8[np.ndarray, "H W 3"]], fps: float) -> None:
    """Write an animation that plays for ever where no video plays, such as in a README; atomically.

    All frames share one palette, so that what stands still costs nothing.

    Args:
        path: a ``.gif`` file.
        frames: uint8 pictures of one size.
        fps: pictures per second, at most 50.
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)])).quantize(192)
    drawn = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    with atomic_write(Path(path)) as temporary:
        first, *others = drawn
        first.save(
            temporary, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0, disposal=1
        )


def captioned(image: UInt8[np.ndarray, "H W 3"], text: str) -> UInt8[np.ndarray, "T W 3"]:
    """`image` under a white strip of 20 pixels with `text` in it."""
    strip = Image.new("RGB", (image.shape[1], 20), "white")
    ImageDraw.Draw(strip).text((4, 3), text, fill="black", font=ImageFont.load_default(13))
    return np.concatenate([np.asarray(strip), image])


def data_uri(content: bytes, suffix: str) -> str:
    """`content` as a ``data:`` address, so that a page holds it itself.

    Raises:
        UserError: the suffix is of no known type.
    """
    if suffix not in MEDIA_TYPES:
        raise UserError(f"cannot embed a '{suffix}' file; known: {', '.join(MEDIA_TYPES)}")
    return f"data:{MEDIA_TYPES[suffix]};base64,{base64.b64encode(content).decode()}"


def contact_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> bytes:
    """Rows of pictures, uint8 [H W 3] each, under their titles, as PNG; all are drawn 96 pixels high."""
    height, font, line, gap = 96, ImageFont.load_default(), 14, 2
    strips = []
    for _, pictures in rows:
        shown = [Image.fromarray(p).resize((max(1, round(height * p.shape[1] / p.shape[0])), height)) for p in pictures]
        strips.append(shown)
    width = max(sum(p.width + gap for p in shown) for shown in strips)
    sheet = Image.new("RGB", (max(width, 400), len(rows) * (height + line + gap)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for (title, _), shown in zip(rows, strips, strict=True):
        pen.text((gap, top), title, fill="black", font=font)
        left = 0
        for picture in shown:
            sheet.paste(picture, (left, top + line))
            left += picture.width + gap
        top += height + line + gap
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
