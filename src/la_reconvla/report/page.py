"""What the pages of this package have in common: files held by the page itself, one style, one script, no network.

A page carries a content security policy that forbids every address but ``data:`` ones and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from la_reconvla import drawing
from la_reconvla.drawing import data_uri
from la_reconvla.errors import UserError
from la_reconvla.report import charts
from la_reconvla.report.phrases import between, compared, difference, effect_size, metric_name, named, paired
from la_reconvla.text_table import duration, number, p_value, percent, points

MAX_BYTES = 14_000_000  # of pictures and videos, encoded; the page stays below 15 MB and opens on a phone


@dataclass(frozen=True)
class Embedded:
    """A file of the study as the page holds it: its ``data:`` address, or why it has none."""

    uri: str | None
    why: str = ""


class Shelf:
    """Turns files and charts into ``data:`` addresses until the page is full.

    Args:
        folder: of the study.
        room: bytes of addresses that the page has room for.
    """

    def __init__(self, folder: Path, room: int = MAX_BYTES) -> None:
        self.folder = folder.resolve()
        self.left = room

    def holds(self, names: Iterable[str]) -> bool:
        """Whether all of these files are there. Errors as in `file`."""
        return all([self._path(name).is_file() for name in names])

    def has_room(self, names: Iterable[str], text: int) -> bool:
        """Whether all of these files are there and fit, with so many bytes of text. Errors as in `file`."""
        names = list(names)
        return self.holds(names) and sum(_encoded(self._path(name)) for name in names) + text <= self.left

    def _path(self, name: str) -> Path:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise UserError(
                f"results.json names {name}, which is outside of {self.folder}: only files of the study are shown"
            )
        return path

    def file(self, name: str) -> Embedded:
        """A file of the study's folder.

        Raises:
            UserError: it is outside of that folder, or of a type that a page cannot show.
        """
        path = self._path(name)
        if not path.is_file():
            return Embedded(None, f"{name} is missing from the study's folder.")
        uri_size = _encoded(path)
        if uri_size > self.left:
            return Embedded(None, f"{name} is left out to keep this page small; it is in the study's folder.")
        self.left -= uri_size
        return Embedded(data_uri(path.read_bytes(), path.suffix))

    def chart(self, svg: bytes | None) -> tuple[str, str] | None:
        """A chart for a light and for a dark page; None if there is none."""
        if svg is None:
            return None
        addresses = data_uri(svg, ".svg"), data_uri(charts.for_dark_page(svg), ".svg")
        self.left -= sum(map(len, addresses))
        return addresses


def _encoded(path: Path) -> int:
    """Bytes of a file as an address."""
    return 4 * path.stat().st_size // 3


def fill(template: str, values: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """A template of this folder with `values`, as the text of a page; `filters` beside those of all pages."""
    environment = Environment(
        loader=PackageLoader("la_reconvla.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        percent=percent,
        points=points,
        number=number,
        p=p_value,
        duration=duration,
        effect_size=effect_size,
        readable=drawing.readable,
        paired=paired,
        named=named,
        metric=metric_name,
        compared=compared,
        capitalize_first=lambda text: text[:1].upper() + text[1:],
        difference=difference,
        between=between,
        **filters,
    )
    here = Path(__file__).parent
    style, script = (
        Markup("".join((here / f"{name}.{kind}").read_text(encoding="utf-8") for name in ("page", "player")))
        for kind in ("css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(style=style, script=script, script_hash=digest, **values)
