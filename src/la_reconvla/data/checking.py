"""What a folder of demonstrations holds, in lines for people, and a sheet of its pictures to look at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from la_reconvla.data.demonstrations import Demonstrations, Episode
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.samples import spread_indices
from la_reconvla.drawing import contact_sheet
from la_reconvla.errors import UserError
from la_reconvla.storage import write_content

EPISODES, FRAMES = 6, 6  # rows and columns of the sheet
COLUMNS = ("lowest", "1 %", "mean", "99 %", "highest")
FEW = 4  # episodes of an instruction, below which hardly any is left to hold out


def check(folder: Path, sheet: Path) -> list[str]:
    """Lines about the demonstrations in `folder`; writes `sheet`.

    Raises:
        UserError: as `open_demonstrations`, if `sheet` is no PNG, or a picture cannot be read.
    """
    if sheet.suffix.lower() != ".png":
        raise UserError(f"the sheet is a PNG: give --sheet a name that ends in .png, not {sheet.name}")
    opened = open_demonstrations(folder)
    content = _sheet(opened)
    write_content(sheet, content)
    return [*described(opened), *_warnings(opened), "", f"look at {sheet}"]


def described(opened: Demonstrations) -> list[str]:
    """What they are, in lines, and the range of each dimension of their actions, as a table of text."""
    return [*_about(opened), "", *_actions(opened)]


def _about(opened: Demonstrations) -> list[str]:
    first, lengths = opened.episodes[0], [len(e.actions) for e in opened.episodes]
    sizes = {name: _size(opened, name) for name in opened.cameras}
    shown = ", ".join(f"{name} {size[0]} x {size[1]}" for name, size in sizes.items() if size)
    state = "LIBERO's" if opened.state_width is None else f"{opened.state_width} numbers"
    told = Counter(e.instruction for e in opened.episodes)
    return [
        f"{len(lengths)} episodes, {sum(lengths)} steps ({min(lengths)} to {max(lengths)} each) at {first.rate:g} Hz: "
        f"{sum(lengths) / first.rate:.0f} s",
        f"cameras (rows x columns): {shown}; {opened.orientation}, every {opened.frame_stride} steps",
        f"state: {state}",
        *opened.notes,
        *(f"{count:5d}  {text}" for text, count in told.most_common()),
    ]


def _size(opened: Demonstrations, camera: str) -> tuple[int, int] | None:
    try:
        return opened.episodes[0].picture_size(camera)
    except UserError:  # LIBERO's files without a wrist camera
        return None


def _actions(opened: Demonstrations) -> list[str]:
    every = np.concatenate([e.actions for e in opened.episodes])
    wide = max(map(len, opened.space.names))
    lines = [f"{'action':{wide}}  {'kind':10}" + "".join(f"{word:>11}" for word in COLUMNS)]
    for place, name in enumerate(opened.space.names):
        column = every[:, place]
        low, high = np.quantile(column, (0.01, 0.99))
        numbers = (column.min(), low, column.mean(dtype=np.float64), high, column.max())
        lines.append(
            f"{name:{wide}}  {opened.space.kinds[place]:10}" + "".join(f"{number:11.4g}" for number in numbers)
        )
    return lines


def _warnings(opened: Demonstrations) -> list[str]:
    every = np.concatenate([e.actions for e in opened.episodes])
    still = [name for place, name in enumerate(opened.space.names) if np.ptp(every[:, place]) == 0]
    told = Counter(e.instruction for e in opened.episodes)
    lines = [f"look: {', '.join(still)} never change: there is nothing to learn of them"] if still else []
    two = [
        name
        for place, name in enumerate(opened.space.names)
        if place in opened.space.motions and len(np.unique(every[:, place])) == 2
    ]
    if two and not opened.space.binary:
        lines.append(f"look: {', '.join(two)} have two values only: import them with --binary")
    if len(told) < 2:
        lines.append("look: there is one instruction only: nothing shows whether a policy listens to its words")
    if few := [text for text, count in told.items() if count < FEW]:
        lines.append(f"look: fewer than {FEW} episodes of: {'; '.join(few)}")
    lines += [f"look: {e.name} shows one picture all the time" for e in opened.episodes if not _moves(e)]
    return lines


def _moves(episode: Episode) -> bool:
    count = len(episode.frame_steps)
    first, last = episode.stream(episode.cameras[0], (0, count - 1))
    return count < 2 or bool((first != last).any())


def _sheet(opened: Demonstrations) -> bytes:
    """Some episodes, a row for each camera."""
    rows: list[tuple[str, list[np.ndarray]]] = []
    for index in spread_indices(len(opened.episodes), EPISODES):
        episode = opened.episodes[index]
        for camera in opened.cameras:
            if _size(opened, camera) is not None:
                chosen = list(episode.stream(camera, spread_indices(len(episode.frame_steps), FRAMES).tolist()))
                rows.append((f"{episode.name}, {camera}: {episode.instruction}", chosen))
    return contact_sheet(rows)
