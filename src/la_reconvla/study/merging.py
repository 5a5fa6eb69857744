"""The shards of a study, or records of it, in one folder again, and judged there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from la_reconvla import layout, leases
from la_reconvla.errors import UserError
from la_reconvla.storage import locked
from la_reconvla.study.ablation import Ablation
from la_reconvla.study.begun import read_begun
from la_reconvla.study.cells import RECORDED
from la_reconvla.study.identity import config_of
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.records import restore
from la_reconvla.study.runs import usual_workers
from la_reconvla.study.shards import require_idle
from la_reconvla.text_table import say


def merged(out: Path, sources: Sequence[Path], workers: int) -> Path:
    """Merge shards or records in one folder, do what is missing, and judge; see the command ``study merge``.

    Raises:
        UserError: as `merge` and `Ablation.run`.
    """
    config, lines = merge(out, sources)
    for line in lines:
        say(line)
    Ablation(config, out, workers or usual_workers(config.backbone)).run()
    return out


def merge(out: Path, sources: Sequence[Path]) -> tuple[StudyConfig, list[str]]:
    """Put shards, or records (`la_reconvla.study.records`), into one folder, with the demonstrations of the first.

    Args:
        out: the folder; without `sources` it is one that the shards shared.
        sources: folders of the shards or of records.

    Returns:
        The study that `out` now holds, and what came from where, in lines.

    Raises:
        UserError: they are no parts of one study, one is being worked on, or two records of one policy differ.
    """
    for source in sources:
        if source.resolve() == out.resolve():
            raise UserError(f"{out} is where the others go: name the folders of the shards after it")
        require_idle(source)
    if not sources:
        read_begun(out / layout.STUDY)
    with locked(out):
        lines = restore(sources, out)
        for source in sources:
            for name in (layout.DEMONSTRATIONS, layout.PLACEMENTS):
                if (source / name).is_dir() and not (out / name).exists():
                    _copy(source / name, out / name)
    config = config_of(read_begun(out / layout.STUDY))
    if config.suite == RECORDED:
        raise UserError(
            f"{out} has no simulator behind it, and study.json does not say where its demonstrations are: judge it by "
            f"the study run --offline of before, with --out {out}"
        )
    return config, lines


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(leases.temporary(target.name))
    shutil.copytree(source, part, ignore=shutil.ignore_patterns(f"{leases.PREFIX}*", ".tmp*", ".pictures"))
    part.replace(target)
