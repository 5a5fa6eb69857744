"""The bench for people: one table per kind of row, and what is left of "up to 5 times faster" in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from la_reconvla.bench.acting import EQUAL, PUBLISHED, Act
from la_reconvla.bench.rows import (
    BenchRow,
    ControlRow,
    ExtraRow,
    LimitRow,
    LoaderRow,
    NotRecordedRow,
    PictureRow,
    ShareRow,
    SimulatorRow,
    TimedRow,
    TrainRow,
)
from la_reconvla.bench.train_steps import BATCH, MEMORY
from la_reconvla.text_table import TextTable

Kind = TypeVar("Kind", bound=BenchRow)
STATISTICS = ("median", "p5 to p95", "rounds")


def speed_claim(rows: Sequence[BenchRow], backbone: str) -> str:
    """What is left of "up to 5 times faster" on one backbone: a sentence, and what it rests on."""
    hertz = {row.case: row.hertz for row in rows if isinstance(row, ControlRow) and row.backbone == backbone}

    def times(ours: Act, theirs: Act, fast: bool = False) -> str:
        names = [replace(case, fast=fast).id for case in (ours, theirs)]
        return f"{hertz[names[0]] / hertz[names[1]]:.1f}" if hertz.keys() >= set(names) else "not measured"

    (five, one, _), (ours, single, theirs) = EQUAL, PUBLISHED
    if times(*five) == "not measured":
        return f'{backbone}: of "up to 5 times faster" nothing is measured here: that needs C4 and ReconVLA.'
    both = [f"{times(*pair)} times ({times(*pair, True)})" for pair in (one, (single, theirs), (ours, theirs))]
    return (
        f'{backbone}: what is left of "up to 5 times faster". With equal images and chunks of 5, C4 gives '
        f"{times(*five)} times as many actions per second as ReconVLA ({times(*five, True)} with both on the fast "
        f"path), with chunks of 1 {both[0]}. With the published numbers of image tokens and action tokens, on this "
        f"backbone, it is {both[1]}: 256 image tokens and one pass for 1 action against 729 and 35 action tokens, one "
        f"after the other, for 5. With 8 actions per chunk, our choice, it is {both[2]}. All of the gain comes from "
        "parallel decoding, with the published numbers also from fewer image tokens. None comes from the "
        "reconstruction head, which costs nothing when a policy acts. "
        "This assumes that every action of a chunk is executed."
    )


def spread(row: TimedRow, digits: int = 1) -> tuple[str, str, str]:
    """Median, p5 to p95 and rounds."""
    return f"{row.median:.{digits}f}", f"{row.p5:.{digits}f} to {row.p95:.{digits}f}", str(row.n)


def _table(
    rows: Sequence[BenchRow],
    kind: type[Kind],
    title: str,
    header: tuple[str, ...],
    cells: Callable[[Kind], tuple[str, ...]],
    keys: int = 2,
) -> TextTable:
    chosen = [row for row in rows if isinstance(row, kind)]
    shown = [(row.backbone or "–", *cells(row)) for row in chosen]
    return TextTable(title, ("backbone", *header), shown, keys=keys)


def tables(rows: Sequence[BenchRow], device_type: str) -> list[TextTable]:
    """One for each kind of rows that are there; `device_type` decides what memory means, see `MEMORY`."""
    everything = [*_acting_tables(rows), *_training_tables(rows, device_type), *_other_tables(rows)]
    return [table for table in everything if table.rows]


def _acting_tables(rows: Sequence[BenchRow]) -> list[TextTable]:
    def control(row: ControlRow) -> tuple[str, ...]:
        apart = ("–" if part is None else f"{part:.1f}" for part in (row.backbone_ms, row.head_ms))
        return (row.case, *spread(row), *apart, f"{row.hertz / row.chunk:.1f}", f"{row.hertz:.0f}")

    def limit(row: LimitRow) -> tuple[str, ...]:
        fast = ("–" if value is None else f"{value:.1f}" for value in (row.fast, row.fast_ratio))
        times = (row.case, f"{row.median:.1f}", f"{row.bound:.2f}", f"{row.ratio:.1f}", *fast)
        return (*times, f"{row.operations / 1e9:.3f}", f"{row.bytes / 1e6:.1f}")

    return [
        _table(
            rows,
            ControlRow,
            "Control: milliseconds per chunk, the backbone's part and the head's where they are apart, chunks per "
            "second, and actions per second if all are executed; arms of a backbone in turn",
            ("arm", *STATISTICS, "backbone", "head", "chunks/s", "Hz"),
            control,
        ),
        _table(
            rows,
            NotRecordedRow,
            "Control: no fast path",
            ("arm", "not recorded because"),
            lambda row: (row.case, row.reason),
        ),
        _table(
            rows,
            LimitRow,
            "Limit: the least time that this machine needs for the matrix products of a chunk",
            ("arm", "ms", "at least", "ratio", "fast, ms", "ratio", "Gop", "MB"),
            limit,
        ),
    ]


def _training_tables(rows: Sequence[BenchRow], device_type: str) -> list[TextTable]:
    def step(row: TrainRow) -> tuple[str, ...]:
        return (
            row.group,
            row.case,
            row.reconstruction_head,
            *spread(row),
            f"{row.over_c1:.2f}",
            f"{row.memory_mb:.1f}",
        )

    def share(row: ShareRow) -> tuple[str, ...]:
        added = (f"{row.mae_ms:.1f}", f"{row.diffusion_ms:.1f}")
        return (row.case, row.arm, row.diffusion_arm, *added, "–" if row.share is None else f"{row.share:.3f}")

    return [
        _table(
            rows,
            TrainRow,
            f"Training: milliseconds per step of {BATCH} samples unless another number is given; arms of a group "
            f"in turn; memory is {MEMORY.get(device_type, MEMORY['cpu'])}",
            ("group", "arm", "head", *STATISTICS, "over C1", "memory, MB"),
            step,
            keys=3,
        ),
        _table(
            rows,
            ExtraRow,
            "Training: what an arm costs more, milliseconds per step",
            ("part", "arm", "over", "median", "ratio"),
            lambda row: (row.case, row.arm, row.without, f"{row.median:.1f}", f"{row.ratio:.2f}"),
        ),
        _table(
            rows,
            ShareRow,
            "Training: what the MAE decoder adds to a step of C1 over what the diffusion head adds; aim: at most 0.2",
            ("heads", "arm", "over", "ms", "over ms", "share"),
            share,
        ),
    ]


def _other_tables(rows: Sequence[BenchRow]) -> list[TextTable]:
    return [
        _table(
            rows,
            PictureRow,
            "Picture: milliseconds",
            ("head", *STATISTICS, "over MAE"),
            lambda row: (row.case, *spread(row, 2), f"{row.over_mae:.1f}"),
        ),
        _table(
            rows,
            LoaderRow,
            "Data: samples per second, shifted and on the device, that the loader gives and that training needs",
            ("arm", "loaded", "needed", "times enough"),
            lambda row: (row.case, f"{row.loaded:.0f}", f"{row.needed:.1f}", f"{row.ratio:.0f}"),
        ),
        _table(
            rows,
            SimulatorRow,
            "Simulator: episodes per minute of the scripted expert in one process",
            ("", *STATISTICS),
            lambda row: (row.case, *spread(row)),
        ),
    ]


def markdown(document: Mapping[str, Any], shown: Sequence[TextTable]) -> str:
    """How it was measured, sentences and tables."""
    about = {key: document[key] for key in ("command", "commit", "machine", "versions", "settings", "roof")}
    lines = [f"- {key}: {value}" for key, value in about.items() if value]
    blocks = ["# Bench", "\n".join(lines), *document["claims"], *(table.markdown() for table in shown)]
    return "\n\n".join(blocks) + "\n"
