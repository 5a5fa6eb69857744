"""Figures and videos of a study. Charts are SVG; pictures of images are PNG.

Nothing here touches matplotlib's global state, and equal input gives equal bytes.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from la_reconvla.errors import UserError
from la_reconvla.storage import atomic_write
from la_reconvla.study.results import ConditionResult, Floor, Results

COLOURS = ("#8a8f98", "#e69f00", "#56b4e9", "#3b7dd8", "#009e73", "#cc79a7", "#d55e00", "#b9a400")
"""One a condition, in the order of the study; told apart by colour-blind readers, visible on white and on black."""

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".mp4": "video/mp4"}


INK, FAINT = "#1d2430", "#c9ced6"  # of charts on a light page; their backgrounds are transparent
DARK = {INK: "#e4e8ee", FAINT: "#464e5a"}


@dataclass(frozen=True)
class Run:
    """Training curves of one cell: its `records` are the lines of ``metrics.jsonl``."""

    condition: str
    seed: int
    records: Sequence[Mapping[str, Any]]


def _svg(draw: Callable[[Figure], None], size: tuple[float, float]) -> bytes:
    """A chart of `size` (inches) as SVG; text is drawn as paths, so that it looks alike everywhere."""
    style: dict[Any, Any] = {
        "svg.hashsalt": "la-reconvla",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.facecolor": "none",
        "grid.color": FAINT,
        "grid.linewidth": 0.5,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def for_dark_page(svg: bytes) -> bytes:
    """A chart in light ink."""
    for light, dark in DARK.items():
        svg = svg.replace(light.encode(), dark.encode())
    return svg


def colours(results: Results) -> dict[str, str]:
    """The colour of each condition, the same in every figure."""
    return {c.id: COLOURS[i % len(COLOURS)] for i, c in enumerate(results.conditions)}


def readable(name: str) -> str:
    """A field's or a floor's name for people."""
    return name.replace("_", " ")


# ---------------------------------------------------------------- charts


def success_chart(results: Results) -> bytes | None:
    """Task success rate of each arm with its Wilson interval, floors as lines; None if nothing was rolled out."""
    arms = [(c, c.tsr) for c in results.conditions if c.tsr]
    if not arms:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (condition, rate) in enumerate(arms):
            _bar(axes, row, rate.rate, rate.low, rate.high, colours(results)[condition.id])
            for floor in results.floors:
                if floor.condition == condition.id and floor.tsr:
                    _tick(axes, row, floor.tsr.rate, INK, ":")
        shared = [(f.id, f.tsr.rate) for f in results.floors if f.tsr and f.condition is None]
        for dashes, (name, value) in zip(("--", "-.", ":"), shared, strict=False):
            axes.axvline(value, color=INK, linewidth=1, linestyle=dashes, label=f"{readable(name)} {value:.0%}")
        own = sorted({readable(f.id) for f in results.floors if f.tsr and f.condition})
        if own:
            axes.plot([], [], color=INK, linestyle=":", label=f"the arm's own floor: {', '.join(own)}")
        _rows(axes, [c for c, _ in arms])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        axes.set_xlabel("task success rate, 95 % interval")
        if shared or own:
            figure.legend(loc="outside upper left", ncols=2)

    return _svg(draw, (7, 0.9 + 0.42 * len(arms)))


def task_chart(results: Results) -> bytes | None:
    """Success by task: a bar an arm over all seeds, a point a seed; None if nothing was rolled out."""
    arms = [c for c in results.conditions if any(cell.tsr for cell in c.cells)]
    tasks = sorted({task for c in arms for cell in c.cells if cell.tsr for task in cell.tsr.per_task})
    if not tasks:
        return None
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            for line, arm in enumerate(arms):
                counts = [c.tsr.per_task[task] for c in arm.cells if c.tsr and task in c.tsr.per_task]
                if not counts:
                    continue
                rate = sum(c.successes for c in counts) / sum(c.episodes for c in counts)
                axes.barh(line, rate, color=colours(results)[arm.id], height=0.62)
                apart = line + (np.arange(len(counts)) - (len(counts) - 1) / 2) * 0.16  # so that equal seeds show
                rates = [c.successes / c.episodes for c in counts]
                axes.plot(rates, apart, "o", markersize=3.2, color=INK, clip_on=False)
            _lines(axes, [arm.id for arm in arms])
            axes.set_title(f"task {task}", fontsize=9)
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        figure.supxlabel("success; a point is one seed", fontsize=9)

    return _svg(draw, (7, rows * (0.75 + 0.26 * len(arms)) + 0.3))


def watched_chart(results: Results) -> bytes | None:
    """Overlap, drift and entropy of the maps while training went on, a line a cell; None if nothing was watched."""
    panels = {"aos": "AOS", "drift": "drift since the check before", "entropy": "entropy (1 is flat)"}
    watched = [(c.id, cell.watched) for c in results.conditions for cell in c.cells if cell.watched]
    drawn = {
        key: name
        for key, name in panels.items()
        if any(getattr(w, key) is not None for _, seen in watched for w in seen)
    }
    if not drawn:
        return None

    def draw(figure: Figure) -> None:
        named: set[str] = set()
        row = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (key, name) in zip(row, drawn.items(), strict=True):
            for arm, seen in watched:
                points = [(w.step, getattr(w, key)) for w in seen if getattr(w, key) is not None]
                x, y = zip(*points, strict=True) if points else ((), ())
                label = None if arm in named else arm
                axes.plot(x, y, marker="o", markersize=2.5, linewidth=1.2, color=colours(results)[arm], label=label)
                named.add(arm)
            chances = [w.aos_chance for _, seen in watched for w in seen if w.aos_chance is not None]
            if key == "aos" and chances:
                axes.axhline(float(np.mean(chances)), color=INK, linestyle="--", linewidth=1, label="chance")
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("training step")
            axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=6)

    return _svg(draw, (7, 2.9))


def causal_chart(results: Results) -> bytes | None:
    """How far actions move when something is hidden, the control among it; None if not measured."""
    kinds = {"target": "o", "distractor": "s", "destination": "^", "control": "x"}
    arms = [c for c in results.conditions if c.causal]
    if not arms:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for line, arm in enumerate(arms):
            for effect in arm.causal:
                row = line + (list(kinds).index(effect.occluded) - 1.5) * 0.18
                colour = INK if effect.occluded == "control" else colours(results)[arm.id]
                axes.plot([effect.shift.low, effect.shift.high], [row, row], color=colour, linewidth=1.6)
                axes.plot(effect.shift.mean, row, kinds[effect.occluded], color=colour, markersize=5)
        for kind, marker in kinds.items():
            axes.plot([], [], marker, color=INK, label="elsewhere (control)" if kind == "control" else kind)
        _rows(axes, arms)
        axes.set_xlim(left=0)
        axes.set_xlabel("shift of the actions when it is hidden, 95 % interval")
        figure.legend(loc="outside upper left", ncols=4)

    return _svg(draw, (7, 0.95 + 0.62 * len(arms)))


def overlap_chart(results: Results) -> bytes | None:
    """AOS of each arm between its chance level and its ceiling, and its k = g variant; None if not measured."""
    arms = [(c, c.aos, c.grounding) for c in results.conditions if c.aos and c.grounding]
    if not arms:
        return None

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for row, (condition, aos, means) in enumerate(arms):
            colour = colours(results)[condition.id]
            _bar(left, row, aos.mean, aos.low, aos.high, colour)
            _tick(left, row, aos.chance, INK, "--")
            _tick(left, row, aos.ceiling, INK, "-")
            if means.aos_g is not None and means.aos_g_chance is not None:
                right.barh(row, means.aos_g, color=colour, height=0.62)
                _tick(right, row, means.aos_g_chance, INK, "--")
                _tick(right, row, 1.0, INK, "-")
        left.plot([], [], color=INK, linestyle="--", label="chance")
        left.plot([], [], color=INK, linestyle="-", label="ceiling")
        _rows(left, [c for c, _, _ in arms])
        left.set_xlabel("AOS: top 25 % of patches")
        right.set_xlabel("AOS, k = g: as many as the target")
        for axes in (left, right):
            axes.set_xlim(left=0)
            axes.grid(visible=True, axis="x")
            axes.tick_params(axis="y", length=0)
            axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=2)

    return _svg(draw, (7, 0.95 + 0.42 * len(arms)))


def time_chart(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Times of the bench: a bar a row of ``bench.json``, its median with p5 to p95, on a logarithmic axis (ms)."""
    named = sorted({(row["section"], row["backbone"]) for row in rows}, key=lambda key: key)
    colour = {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(named)}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            _bar(axes, place, row["median"], row["p5"], row["p95"], colour[row["section"], row["backbone"]])
        labels = [f"{row['section']}, {row['backbone']}: {row['case']}" for row in rows]
        _lines(axes, labels)
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds, 5th to 95th percentile")

    return _svg(draw, (8, 0.9 + 0.26 * len(rows)))


def _bar(axes: Axes, row: int, value: float, low: float, high: float, colour: str) -> None:
    axes.barh(row, value, color=colour, height=0.62)
    axes.plot([low, high], [row, row], color=INK, linewidth=1.6, solid_capstyle="butt")


def _tick(axes: Axes, row: int, value: float, colour: str, style: str) -> None:
    axes.plot([value, value], [row - 0.4, row + 0.4], color=colour, linewidth=1.3, linestyle=style)


def _rows(axes: Axes, conditions: Sequence[ConditionResult]) -> None:
    _lines(axes, [f"{c.id}  {c.name}" for c in conditions])


def _lines(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def stage_chart(results: Results) -> bytes | None:
    """How far episodes of each arm and floor got, from approaching to success; None if no stages were recorded."""
    steps = ("approached", "grasped", "lifted", "placed")

    def shares(found: ConditionResult | Floor) -> list[tuple[int, float]]:
        values = [getattr(found.stages, s) for s in steps] + [found.tsr.rate if found.tsr else None]
        return [(i, v) for i, v in enumerate(values) if v is not None]

    lines = [(c.id, shares(c)) for c in results.conditions if c.stages]
    floors = [(f"{readable(f.id)} {f.condition or ''}".strip(), shares(f)) for f in results.floors if f.stages]
    if not lines:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, known), style in zip(floors, itertools.cycle(("--", "-.", ":", (0, (1, 3))))):
            axes.plot(*zip(*known, strict=True), linestyle=style, linewidth=1, color=INK, label=name)
        for name, known in lines:
            axes.plot(*zip(*known, strict=True), marker="o", color=colours(results)[name], label=name)
        axes.set_xticks(range(5), [*steps, "success"])
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        axes.set_ylabel("share of episodes")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=4)

    return _svg(draw, (7, 3.2))


def curves_chart(results: Results, runs: Sequence[Run]) -> bytes | None:
    """Action and reconstruction loss over training steps, one line a cell; None if there is nothing to draw.

    Reads ``step``, ``action_loss``, ``held_out_action_loss`` (dashed) and ``reconstruction_loss`` of each record.
    """
    panels = (("action_loss", "held_out_action_loss"), ("reconstruction_loss",))
    drawn = [keys for keys in panels if any(keys[0] in record for run in runs for record in run.records)]
    if not drawn:
        return None

    def draw(figure: Figure) -> None:
        row = figure.subplots(1, len(drawn), squeeze=False)[0]
        named: set[str] = set()
        for axes, keys in zip(row, drawn, strict=True):
            for run in runs:
                for key, style in zip(keys, ("-", "--"), strict=False):
                    points = [(r["step"], r[key]) for r in run.records if r.get(key) is not None]
                    label = None if run.condition in named or not points else run.condition
                    named |= {label} if label else set()
                    x, y = zip(*points, strict=True) if points else ((), ())
                    colour = colours(results).get(run.condition, INK)
                    axes.plot(x, y, linestyle=style, linewidth=1.2, color=colour, label=label)
            axes.set_title(readable(keys[0]), fontsize=9)
            axes.set_xlabel("training step")
            axes.grid(axis="y")
        row[0].plot([], [], color=INK, linestyle="--", label="held out")
        figure.legend(loc="outside upper left", ncols=len(named) + 1)

    return _svg(draw, (7, 2.9))


# ---------------------------------------------------------------- pictures


def overlay(image: UInt8[np.ndarray, "H W 3"], saliency: Float[np.ndarray, "n"], grid: tuple[int, int]) -> np.ndarray:
    """`image` with `saliency` as heat over it, patch by patch: what the map really is, not smoothed.

    Args:
        image: uint8 picture.
        saliency: one score a patch, row by row; only their proportions matter.
        grid: rows and columns of patches.

    Returns:
        uint8 [H W 3].

    Raises:
        UserError: if the number of scores is not that of the grid, or the image is not uint8 [H W 3].
    """
    scores = np.asarray(saliency, dtype=np.float64)
    if scores.size != grid[0] * grid[1] or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"cannot lay {scores.shape} scores on a {grid} grid over an image {image.shape} {image.dtype}")
    spread = float(np.ptp(scores))
    relative = (scores - scores.min()) / spread if spread > 0 else np.zeros_like(scores)
    heat = _per_pixel(relative.reshape(grid), image.shape[:2])[..., None]
    colour = colormaps["inferno"](heat[..., 0])[..., :3] * 255
    opacity = 0.2 + 0.5 * heat
    return (image * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def _per_pixel(patches: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Each patch's value at all of its pixels, also where the grid does not divide the image."""
    rows = np.arange(shape[0]) * patches.shape[0] // shape[0]
    columns = np.arange(shape[1]) * patches.shape[1] // shape[1]
    return patches[np.ix_(rows, columns)]


def filled(
    image: UInt8[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, "n"],
    painted: UInt8[np.ndarray, "H W 3"],
    grid: tuple[int, int],
) -> UInt8[np.ndarray, "H W 3"]:
    """`image` with the patches that `mask` hides taken from `painted`, and a line around them."""
    hidden = _per_pixel(mask.reshape(grid), image.shape[:2])[..., None]
    return edged(np.where(hidden, painted, image), mask, grid)


def edged(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "n"], grid: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """`image` with a white line of one pixel along the inner edge of the True patches of `mask`."""
    hidden = np.pad(_per_pixel(mask.reshape(grid), image.shape[:2]), 1)
    inner = hidden[:-2, 1:-1] & hidden[2:, 1:-1] & hidden[1:-1, :-2] & hidden[1:-1, 2:]
    return np.where((hidden[1:-1, 1:-1] & ~inner)[..., None], np.uint8(255), image)


def small_png(image: UInt8[np.ndarray, "H W 3"], side: int, colours: int = 96) -> bytes:
    """`image` as a PNG of few colours and at most `side` pixels a side: hundreds of them fit into one page."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.quantize(colours, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def attention_grid(
    images: UInt8[np.ndarray, "f H W 3"],
    instructions: Sequence[str],
    maps: Mapping[str, Float[np.ndarray, "f n"]],
    grid: tuple[int, int],
    masks: Mapping[str, Bool[np.ndarray, "f n"]] | None = None,
) -> bytes:
    """Attention maps of all conditions on the same frames, as PNG.

    Rows are frames under their instruction; columns are the image and then each condition. Patches that the condition
    masks are outlined.

    Args:
        images: the frames.
        instructions: what the robot was told in each.
        maps: saliency of each condition.
        grid: rows and columns of patches.
        masks: patches that a condition reconstructs, where it has any.
    """
    rows, columns = len(images), 1 + len(maps)
    figure = Figure(figsize=(1.7 * columns, 1.95 * rows + 0.3), layout="constrained")
    for i, strip in enumerate(figure.subfigures(rows, 1, squeeze=False)[:, 0]):
        strip.suptitle(instructions[i], fontsize=9, x=0.01, ha="left")
        cells = strip.subplots(1, columns, squeeze=False)[0]
        _show(cells[0], images[i], "image")
        for axes, (name, scores) in zip(cells[1:], maps.items(), strict=True):
            _show(axes, overlay(images[i], scores[i], grid), name)
            if masks and name in masks:
                axes.add_collection(_outline(masks[name][i].reshape(grid), images[i].shape[:2]))
    return _png(figure)


def head_grid(
    image: UInt8[np.ndarray, "H W 3"],
    title: str,
    layers: Mapping[str, Float[np.ndarray, "h n"]],
    grid: tuple[int, int],
) -> bytes:
    """Attention maps of every head on one image, as PNG; rows are layers, columns their mean and then each head.

    Each map has its own scale: heads differ in how much they look at the image at all, which the titles say.

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


def crop_strip(
    images: UInt8[np.ndarray, "f H W 3"],
    crops: UInt8[np.ndarray, "f H W 3"],
    predictions: UInt8[np.ndarray, "f H W 3"],
    instructions: Sequence[str],
) -> bytes:
    """What the policy saw, the crop that the head had to draw, and what it drew, one frame a row, as PNG."""
    titles = "original", "crop", "drawn from noise"
    rows = [list(zip(titles, shown, strict=True)) for shown in zip(images, crops, predictions, strict=True)]
    return _strip(rows, instructions)


def reconstruction_strip(
    images: UInt8[np.ndarray, "f H W 3"],
    masks: Bool[np.ndarray, "f n"],
    predictions: UInt8[np.ndarray, "f H W 3"],
    grid: tuple[int, int],
    instructions: Sequence[str] | None = None,
) -> bytes:
    """Original, what the decoder was shown, and its prediction, one frame a row, as PNG.

    Args:
        images: the frames.
        masks: True at patches to reconstruct.
        predictions: predicted pixels of whole frames; only masked patches are taken from them.
        grid: rows and columns of patches.
        instructions: a title for each row.
    """
    rows = []
    for image, mask, predicted in zip(images, masks, predictions, strict=True):
        hidden = _per_pixel(mask.reshape(grid), image.shape[:2])[..., None]
        rows.append(
            [
                ("original", image),
                ("masked", np.where(hidden, np.uint8(128), image)),
                ("prediction in the masked patches", np.where(hidden, predicted, image)),
            ]
        )
    return _strip(rows, instructions)


def _strip(rows: Sequence[Sequence[tuple[str, np.ndarray]]], instructions: Sequence[str] | None) -> bytes:
    figure = Figure(figsize=(5.6, 2.05 * len(rows) + 0.3), layout="constrained")
    for i, strip in enumerate(figure.subfigures(len(rows), 1, squeeze=False)[:, 0]):
        if instructions:
            strip.suptitle(instructions[i], fontsize=9, x=0.01, ha="left")
        for axes, (title, picture) in zip(strip.subplots(1, len(rows[i])), rows[i], strict=True):
            _show(axes, picture, title)
    return _png(figure)


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _outline(mask: np.ndarray, shape: tuple[int, ...]) -> LineCollection:
    """Lines around the True patches of `mask` [rows columns], in pixels of an image of `shape`."""
    padded = np.pad(mask, 1).astype(int)
    height, width = shape[0] / mask.shape[0], shape[1] / mask.shape[1]
    across = np.argwhere(np.diff(padded, axis=0)[:, 1:-1])  # an edge above row r, over column c
    along = np.argwhere(np.diff(padded, axis=1)[1:-1])
    lines = [[(c * width, r * height), ((c + 1) * width, r * height)] for r, c in across]
    lines += [[(c * width, r * height), (c * width, (r + 1) * height)] for r, c in along]
    return LineCollection(list(np.array(lines).reshape(-1, 2, 2) - 0.5), colors="white", linewidths=0.9)


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
        fps: pictures a second.

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
        except OSError as error:  # ffmpeg has died; a broken pipe does not say of what
            raise UserError(f"{path}: the video could not be written ({error}); is the disk full?") from error
        if imageio_ffmpeg.count_frames_and_secs(str(temporary))[0] != len(pictures):
            raise UserError(f"{path}: the video was cut short; is the disk full?")


def data_uri(content: bytes, suffix: str) -> str:
    """`content` as a ``data:`` address, so that a page holds it itself.

    Raises:
        UserError: the suffix is of no known type.
    """
    if suffix not in MEDIA_TYPES:
        raise UserError(f"cannot embed a '{suffix}' file; known: {', '.join(MEDIA_TYPES)}")
    return f"data:{MEDIA_TYPES[suffix]};base64,{base64.b64encode(content).decode()}"
