"""What a study measured, without its weights: one small archive a policy, from which another machine goes on.

A folder of records holds ``study.json``, as the study does, and ``<condition>/seed<k>.tar.gz`` and the like, one for
each folder of the study that is finished. Restored, such a policy counts as trained and measured; of its weights only
the hash is known, so that it cannot act. Folders of one study are merged in the same way, with their weights.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from la_reconvla import layout
from la_reconvla.errors import UserError
from la_reconvla.storage import differing, locked, parse_json, plain, read_json, read_jsonl, write_content, write_json
from la_reconvla.study.begun import read_begun
from la_reconvla.study.cells import Cell, asked_of, cells
from la_reconvla.study.identity import GROWS, JOINS, config_of, identity_of, with_defaults
from la_reconvla.study.presets import StudyConfig
from la_reconvla.training.devices import pick_device
from la_reconvla.training.held_out import LOOKS
from la_reconvla.training.loop import SCHEDULE
from la_reconvla.training.run_folders import CONFIG, WEIGHTS, WEIGHTS_NAMED
from la_reconvla.training.run_state import hash_of_weights, recorded_only, trained
from la_reconvla.training.trackers import METRICS

SUFFIX = ".tar.gz"
VERSION = 1  # of the archives, in `study.json` under RECORDS
RECORDS = "records"
SAME = (CONFIG, SCHEDULE, layout.EVALUATION, layout.HELD_OUT)  # equal in all records of one training
LINES = {layout.EPISODES: ("start", "seconds", "video"), layout.SEQUENCES: ("index", "seconds")}
"""Files of lines: the field that names a line, then those in which equal ones may differ."""
KEPT = re.compile(rf"{'|'.join(map(re.escape, (*SAME, *LINES, METRICS, WEIGHTS_NAMED)))}|{LOOKS}/\d+\.npy")
OF_POLICY = re.compile(r"seed\d+")  # name of a folder that belongs to one trained policy

Files = Mapping[str, bytes]


@dataclass(frozen=True, eq=False)
class Recorded:
    """What one folder of a study holds.

    Attributes:
        name: the folder, relative to the study's.
        files: what was measured there, by name; `WEIGHTS_NAMED` among them where a policy is complete.
        source: where they came from, for messages.
        folder: the folder itself, if this is no archive: it has weights and videos.
    """

    name: Path
    files: Files
    source: Path
    folder: Path | None = None

    @property
    def weights(self) -> str | None:
        """Hash of the weights; None where nothing was trained, or not to the end."""
        return json.loads(self.files[WEIGHTS_NAMED])["weights"] if WEIGHTS_NAMED in self.files else None


# ---------------------------------------------------------------- out of a study


def write_records(study: Path, out: Path) -> list[str]:
    """Write what is finished of a study, each policy or floor or reference into a file; equal ones stay as they are.

    Args:
        study: its folder. It may be running: what it has not finished is left out.
        out: folder of the records.

    Returns:
        What was written and what was left out, a line each.

    Raises:
        UserError: `study` is none, or `out` holds records of another study or of another training.
    """
    begun = read_begun(study / layout.STUDY)
    config = config_of(begun)
    lines: list[str] = []
    with locked(out, keep=False):  # people commit it
        _require_one_study(out, study)
        _note_study(out, study, command="", **{RECORDS: VERSION})
        chosen = [name for name in _folders(study) if not OF_POLICY.fullmatch(name.name)]
        for cell in cells(config, study):
            if lacking := unfinished(config, study, cell):
                lines.append(f"{cell.condition.id} seed {cell.seed} is left out: {lacking}")
            else:
                folders = dict.fromkeys((cell.folder, *asked_of(config, study, cell)))
                chosen += [folder.relative_to(study) for folder in folders]
        written = sum([_pack(_of_folder(study, name), out) for name in chosen])
    return [*lines, f"{out}: {written} files written, {len(chosen) - written} were there"]


def unfinished(config: StudyConfig, study: Path, cell: Cell) -> str:
    """What a policy of a study lacks yet, in words; empty if it is trained, rolled out and measured."""
    if not trained(cell.folder):
        return "it is not trained"
    for folder, count in asked_of(config, study, cell).items():
        if (done := len(read_jsonl(folder / layout.EPISODES))) < count:
            return f"{done} of {count} episodes in {folder.relative_to(study)}"
    path = cell.folder / layout.HELD_OUT
    if not path.exists() or read_json(path).get("weights") != hash_of_weights(cell.folder):
        return "it is not measured on held-out frames"
    return ""


def _folders(study: Path) -> list[Path]:
    """Where a study keeps records, relative to it; policies after their floors, since they are asked for first."""
    found = {path.parent.relative_to(study) for file in (CONFIG, layout.EVALUATION) for path in study.rglob(file)}
    beside = {layout.DEMONSTRATIONS, layout.PLACEMENTS}
    own = [name for name in found if beside.isdisjoint(name.parts) and not any(p.startswith(".") for p in name.parts)]
    own = [name for name in own if not any(map(OF_POLICY.fullmatch, name.parts[:-1]))]  # not what `eval` left in a run
    return sorted(own, key=_order)


def _order(name: Path) -> tuple[bool, Path]:
    return len(name.parts) == 2 and OF_POLICY.fullmatch(name.name) is not None, name


def _of_folder(study: Path, name: Path) -> Recorded:
    folder = study / name
    there = (path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob(f"{LOOKS}/*")))
    files = {each: (folder / each).read_bytes() for each in sorted(there) if KEPT.fullmatch(each)}
    if trained(folder):
        files[WEIGHTS_NAMED] = json.dumps({"weights": hash_of_weights(folder)}).encode()
    return Recorded(name, files, study, folder)


def _pack(record: Recorded, out: Path) -> bool:
    """Write one archive, unless one of equal content is there; says whether it did."""
    path = out / f"{record.name}{SUFFIX}"
    if path.exists():
        before = _unpack(path, out)
        if before.weights != record.weights:
            raise _doubled(before, record, "weights")
        if before.files == record.files:
            return False
    packed = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", encoding="utf-8") as archive,
    ):
        for name, content in sorted(record.files.items()):
            about = tarfile.TarInfo(name)  # without owner and time: equal content is an equal file
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    write_content(path, packed.getvalue())
    return True


def _unpack(path: Path, source: Path) -> Recorded:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz", encoding="utf-8") as archive:
            for about in archive:
                content = archive.extractfile(about)
                if content is None or not KEPT.fullmatch(about.name):
                    raise UserError(f"{path} holds {about.name}, which no record has: it is not of this program")
                files[about.name] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or delete it and train that policy again") from error
    return Recorded(path.relative_to(source).with_name(path.name.removesuffix(SUFFIX)), files, source)


# ---------------------------------------------------------------- into a study


def restore(sources: Sequence[Path], study: Path) -> list[str]:
    """Put records, or other folders of the same study, into a study's folder; what is there already stays.

    Args:
        sources: folders of `write_records`, or of studies: their weights and videos come too.
        study: where to; made if it is missing. The caller holds it (`la_reconvla.storage.locked`).

    Returns:
        What came, a line for each source, and what was left out.

    Raises:
        UserError: one is a study of another configuration, of other versions, hypotheses or demonstrations, a record is
            damaged, or two of one policy differ.
    """
    lines = []
    for source in sources:
        _require_one_study(study, source)
        _require_same_data(study, source)
        _note_study(study, source)
        came = 0
        for record in _incoming(source):
            if CONFIG in record.files and record.weights is None:
                lines.append(f"{source / record.name} is left out: it is not trained")
                continue
            _put(record, study)
            came += record.weights is not None
        lines.append(f"{source}: {came} policies")
    return lines


def _incoming(source: Path) -> Iterator[Recorded]:
    version = read_json(source / layout.STUDY).get(RECORDS)
    if version not in (None, VERSION):
        raise UserError(f"{source} holds records of version {version}, this is {VERSION}: read them with a later one")
    if version is None:
        yield from (_of_folder(source, name) for name in _folders(source))
        return
    names = (path.relative_to(source) for path in source.rglob(f"*{SUFFIX}"))
    for name in sorted((name.with_name(name.name.removesuffix(SUFFIX)) for name in names), key=_order):
        yield _unpack(source / f"{name}{SUFFIX}", source)


def _require_same_data(study: Path, source: Path) -> None:
    """See that all policies, here and there, learnt from the same demonstrations."""
    found = {_data(path.read_bytes()): path.parent for path in study.glob(f"*/seed*/{CONFIG}")}
    for record in _incoming(source):
        if CONFIG in record.files:
            where = found.setdefault(_data(record.files[CONFIG]), source / record.name)
            if len(found) > 1:
                other = next(folder for folder in found.values() if folder != where)
                raise UserError(
                    f"{source / record.name} and {other} learnt from different demonstrations, and arms are compared "
                    "on the same ones: keep these studies apart"
                )


def _data(config: bytes) -> str:
    return parse_json(config).get("data_hash", "")


def _put(record: Recorded, study: Path) -> None:
    """Write what is missing; the weights, or their hash, come last, so that half a policy does not count."""
    target, files = study / record.name, dict(record.files)
    here = _of_folder(study, record.name)
    fresh = record.weights is not None and here.weights is None  # of a training that was not finished nothing stays
    if None not in (record.weights, here.weights) and record.weights != here.weights:
        raise _doubled(here, record, "weights")
    last = files.pop(WEIGHTS_NAMED, None)
    for name, content in files.items():
        before = None if fresh else here.files.get(name)
        if name in LINES:
            _add_lines(record, here, name)
        elif before is None:
            write_content(target / name, content)
        elif name in SAME and before != content and parse_json(before) != parse_json(content):
            raise _doubled(here, record, name)
    if record.folder is not None:
        for path in (*record.folder.glob(f"{layout.VIDEOS}/*"), *record.folder.glob(WEIGHTS)):
            if not (copy := target / path.relative_to(record.folder)).exists():
                write_content(copy, path.read_bytes())
    if last is not None and not trained(target):
        write_content(target / WEIGHTS_NAMED, last)


def _add_lines(record: Recorded, here: Recorded, name: str) -> None:
    """Add the lines that are not there yet.

    Raises:
        UserError: two of one start differ in more than the time that they took.
    """
    key, *free = LINES[name]

    def by_key(files: Files) -> dict[str, dict[str, Any]]:
        lines = [parse_json(line) for line in files.get(name, b"").split(b"\n")[:-1]]
        return {json.dumps(line[key], sort_keys=True): line for line in lines}

    mine, theirs = by_key(here.files), by_key(record.files)
    for named in mine.keys() & theirs.keys():
        if any(mine[named].get(field) != value for field, value in theirs[named].items() if field not in free):
            raise _doubled(here, record, f"{name}, {named}")
    if added := [line for named, line in theirs.items() if named not in mine]:
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (*mine.values(), *added))
        write_content(here.source / record.name / name, lines)


def _doubled(one: Recorded, other: Recorded, what: str) -> UserError:
    return UserError(
        f"{one.source / one.name} and {other.source / other.name} are two different records of one policy ({what}): "
        "delete one of them"
    )


def _require_one_study(target: Path, source: Path) -> None:
    """Raise a `UserError` if two folders are of different studies."""
    theirs = _same(source)
    if (target / layout.STUDY).exists() and (found := list(differing(theirs, _same(target)))):
        raise UserError(
            f"{source} and {target} are no parts of one study (different: {', '.join(found[:6])}): choose another "
            "folder, or delete that one"
        )


def _same(study: Path) -> dict[str, Any]:
    """What is equal in all folders of one study."""
    begun = read_begun(study / layout.STUDY)
    same = {key: getattr(begun, key) for key in ("config", "versions", "precision", "hypotheses_hash")}
    return with_defaults(same, config_of(begun))


def _note_study(target: Path, source: Path, **changes: Any) -> None:
    """Write the ``study.json`` of a study into another folder of it; where there is one, sizes, looks, commits join."""
    theirs, path = read_json(source / layout.STUDY), target / layout.STUDY
    theirs.pop(RECORDS, None)
    mine = read_json(path) if path.exists() else theirs
    held, more = (read_begun(at).looks if at.exists() else () for at in (path, source / layout.STUDY))
    looks = (*held, *(look for look in more if look not in held))  # by their fields: a file of before lacks some
    joined = {
        "size": _joined(mine.get("size", {}), theirs.get("size", {})),
        "commits": list(dict.fromkeys([*mine["commits"], *theirs["commits"]])),
        "looks": plain(sorted(looks, key=lambda look: look.date)),
    }
    if not path.exists() or {**mine, **joined} != mine:
        write_json(path, {**mine, **joined, **changes})


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The least size that has all of both."""
    result = {**other, **one}
    for key in set(GROWS) & one.keys() & other.keys():
        if key in JOINS:
            result[key] = list(dict.fromkeys([*one[key], *other[key]]))
        elif key != "floor_arm":
            result[key] = max(one[key], other[key])
    return result


# ---------------------------------------------------------------- what needs weights, and what fits


def require_same_study(config: StudyConfig, records: Path) -> None:
    """Raise a `UserError` if records are those of another study than this one, or of other versions."""
    read_begun(path := records / layout.STUDY)
    mine = identity_of(config, str(pick_device(config.train.device)))
    if found := list(differing(mine, with_defaults(read_json(path), config))):
        raise UserError(
            f"{records} holds records of another study (different: {', '.join(found[:6])}): ask for that one, with the "
            "versions that it names"
        )


def require_weights(config: StudyConfig, study: Path, of: Sequence[Cell]) -> None:
    """See that no policy that is here without its weights would have to act again.

    Args:
        config: the study.
        study: its folder.
        of: its policies.

    Raises:
        UserError: one of them is asked for more than its records have.
    """
    for cell in of:
        if recorded_only(cell.folder) and (lacking := unfinished(config, study, cell)):
            raise without_weights(cell, lacking)


def without_weights(cell: Cell, why: str) -> UserError:
    """That a policy of records would have to act again, and `why`, in words; what to do."""
    name = f"{cell.condition.id}/seed{cell.seed}"
    return UserError(
        f"{cell.folder} came from records, without its weights, and would have to act again ({why}): ask for no more "
        f"than it has, or delete that folder and its record {name}{SUFFIX}, and the same command trains it again"
    )
