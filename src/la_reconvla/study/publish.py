"""What others get: a policy, a study or demonstrations, as a folder that loads anywhere or a repository, with a card.

To the hub: `push`. From it: `pull`, of a commit, into a folder that appears when it is complete.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

from la_reconvla.backbones.hub import explained
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.lerobot_layout import INFO
from la_reconvla.errors import UserError
from la_reconvla.storage import (
    explain_disk_errors,
    locked,
    parse_json,
    read_json,
    require_free_space,
    sha256_of,
    write_content,
)
from la_reconvla.study.cards import (
    Labels,
    data_card,
    data_licence,
    policy_card,
    policy_licence,
    require_finished,
    study_card,
    study_licence,
)
from la_reconvla.study.shareable import (
    CARD,
    LEROBOT,
    POLICY,
    STUDY,
    Kind,
    files_in,
    kind_here,
    kind_of,
    matching,
    size_text,
)
from la_reconvla.text_table import say
from la_reconvla.training.checkpoint import CONFIG, PolicyConfig
from la_reconvla.training.exporting import export_policy

UNNAMED = Labels()
SHOWN = 5  # names of files that are left out, in a message


def export(run: Path, out: Path, merged: bool = False, labels: Labels = UNNAMED) -> Path:
    """Write the policy and its card to `out`; see `la_reconvla.training.exporting.export_policy`."""
    config = export_policy(run, out, merged)
    labels = replace(labels, license=labels.license or policy_licence(PolicyConfig.load(run)))
    write_content(out / CARD, str(policy_card(run, config, labels)))
    return out


# ---------------------------------------------------------------- to the hub


@dataclass(frozen=True)
class Pushed:
    """What was uploaded.

    Attributes:
        kind: what it is.
        repo: its name, to be pulled by.
        revision: the commit.
    """

    kind: Kind
    repo: str
    revision: str


def push(source: Path, labels: Labels, *, merged: bool = False, weights: bool = False, private: bool = False) -> Pushed:
    """Upload a folder by its kind, with a card. What the repository holds besides stays there.

    Args:
        source: run, study, or folder of demonstrations.
        labels: name of the repository, and what else the files do not say.
        merged: of a policy, with the backbone's weights, adapters merged.
        weights: of a study, with the weights of its policies.
        private: of a repository that is new.

    Raises:
        UserError: before anything is sent if it would not load elsewhere, is not finished, or nobody knows its licence;
            if the hub refuses, or cannot be reached.
    """
    kind = kind_here(source)
    for given, name, place in ((merged, "merged", POLICY), (weights, "weights", STUDY)):
        if given and kind is not place:
            raise UserError(f"--{name} is for a {place.name}, and {source} is a {kind.name}: leave it out")
    repo = labels.repo
    with tempfile.TemporaryDirectory() as folder:
        _stage(source, kind, Path(folder), labels, merged, weights)
        names = files_in(Path(folder))
        size = sum((Path(folder) / name).stat().st_size for name in names)
        say(f"uploading a {kind.name} to {_address(kind, repo)}: {_counted(names)}, {size_text(size)}")
        with explained(
            repo,
            missing="is no repository that you may write to: check the name (user/name)",
            refused="cannot be uploaded to",
            otherwise="check your network and run the same command again",
            token="a token that may write there",
        ):
            api = HfApi()
            api.create_repo(repo, repo_type=kind.place, private=private or None, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, repo_type=kind.place, folder_path=folder, commit_message=f"A {kind.name} by la-reconvla"
            )
            if kind is LEROBOT:  # LeRobot asks for the version of the format, not for the newest commit
                version = read_json(source / INFO)["codebase_version"]
                with contextlib.suppress(errors.RevisionNotFoundError):  # of an earlier push: it is to name this one
                    api.delete_tag(repo, tag=version, repo_type=kind.place)
                api.create_tag(repo, tag=version, revision=done.oid, repo_type=kind.place)
    return Pushed(kind, _address(kind, repo), done.oid)


def _stage(source: Path, kind: Kind, folder: Path, labels: Labels, merged: bool, weights: bool) -> None:
    """Put into `folder` what is uploaded: a policy as it is exported, links to the files of all else, and the card."""
    if kind is POLICY:
        config = PolicyConfig.load(source)
        if isinstance(config.backbone, Pretrained) and not merged and Path(config.backbone.source).is_dir():
            raise UserError(
                f"{source} needs the weights in {config.backbone.source}, which nobody else has: push it with --merged"
            )
        export(source, folder, merged, _licensed(source, labels, policy_licence(config)))
        return
    if kind is STUDY:
        require_finished(source)
        card = study_card(source, weights, _licensed(source, labels, study_licence(source, weights)))
    else:
        opened = open_demonstrations(source)
        card = data_card(source, kind, opened, _licensed(source, labels, data_licence(opened)))
    here = files_in(source)
    if not weights and (stays := matching(here, kind.weights)):
        size = sum((source / name).stat().st_size for name in stays)
        say(f"the weights, {_counted(stays)}, {size_text(size)}, stay here; --weights uploads them too")
    for name in matching(here, (*kind.files, *kind.redrawn, *(kind.weights if weights else ()))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((source / name).resolve())
    (folder / CARD).write_text(str(card), encoding="utf-8")


def _licensed(source: Path, labels: Labels, follows: str | None) -> Labels:
    """The labels with the licence that was given, or else the one that follows from what it was made of."""
    if (licence := labels.license or follows) is None:
        raise UserError(
            f"nothing says under which licence others may use {source}: name it as the hub does, for example "
            "--license cc-by-4.0; a policy has that of its backbone and data"
        )
    return replace(labels, license=licence)


# ---------------------------------------------------------------- from the hub


def pull(repo: str, out: Path, revision: str | None = None) -> Path:
    """Download a policy, a study or demonstrations to a folder, which appears when all files are there and whole.

    Until then they are beside it, in a hidden folder of the commit's name; the same command keeps those that are whole.

    Args:
        repo: ``user/name``, or ``datasets/user/name`` for a study or demonstrations; the first finds these too where
            there is no model of that name.
        out: folder to make.
        revision: commit, tag or branch; None for the newest commit. Which one it was is said.

    Raises:
        UserError: `out` holds something, the hub has none such or cannot be reached, what is there is none of ours, or
            a file is not what the hub says that it is.
    """
    target = out.absolute()  # a name of its own, whatever leads there
    if out.is_symlink():
        raise UserError(f"{out} is a link, and is not replaced: choose another --out, or the folder that it leads to")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already, and nothing is overwritten: choose another --out")
    with _reading(repo, revision):
        place, name, info = _look_up(repo, revision)
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings}
    kind = kind_of(sizes)
    if kind is None or kind.place != place or (kind is POLICY and not _is_ours(name, info.sha)):
        raise UserError(
            f"{repo} holds no policy, study or demonstrations of this package ({_listed(list(sizes))}): check its "
            "name; other models are named as they are, with --backbone"
        )
    wanted = matching(sizes, (*kind.files, *kind.weights, f"/{CARD}"))
    size = sum(sizes[file] for file in wanted)
    left = [file for file in sizes if file not in wanted and not file.startswith(".")]
    say(
        f"downloading a {kind.name} from {_address(kind, name)}: {_counted(wanted)}, {size_text(size)}"
        + (f"; left there: {_listed(left)}" if left else "")
        + f"\nexactly this again: --revision {info.sha}"
    )
    part = target.with_name(f".{target.name}-{info.sha[:12]}")
    present = sum(path.stat().st_size for path in part.rglob("*") if path.is_file()) if part.exists() else 0
    require_free_space(out, max(0, size - present))
    with locked(part):
        with _reading(repo, revision), explain_disk_errors(part):
            patterns = [glob.escape(file) for file in wanted]
            snapshot_download(name, repo_type=place, revision=info.sha, local_dir=part, allow_patterns=patterns)
        for file in info.siblings:
            if file.rfilename in wanted:
                _require_whole(part / file.rfilename, file, part)
        for extra in set(files_in(part)) - set(wanted):  # the library's notes, the lock, and what a killed one left
            (part / extra).unlink()
        shutil.rmtree(part / ".cache", ignore_errors=True)
        os.replace(part, target)
    return out


def _is_ours(name: str, commit: str) -> bool:
    """Whether the configuration of a model is that of a policy of this package, of any version."""
    with tempfile.TemporaryDirectory() as folder, _reading(name, commit):
        path = hf_hub_download(name, CONFIG, revision=commit, local_dir=folder)
        try:
            said = parse_json(Path(path).read_bytes())
        except ValueError:
            return False
        return isinstance(said, dict) and {"schema", "condition"} <= said.keys()


def _look_up(repo: str, revision: str | None) -> tuple[str, str, Any]:
    """Kind of repository, its name, and what it holds."""
    api = HfApi()
    if repo.startswith("datasets/"):
        name = repo.removeprefix("datasets/")
        return "dataset", name, api.dataset_info(name, revision=revision, files_metadata=True)
    try:
        return "model", repo, api.model_info(repo, revision=revision, files_metadata=True)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        return "dataset", repo, api.dataset_info(repo, revision=revision, files_metadata=True)


@contextlib.contextmanager
def _reading(repo: str, revision: str | None) -> Iterator[None]:
    with explained(
        repo,
        missing="is no repository on the hub that you may see: check the name",
        refused="cannot be downloaded",
        otherwise="check your network and run the same command again, which keeps the files that are whole",
        revision=revision,
    ):
        yield


def _require_whole(path: Path, told: Any, part: Path) -> None:
    """Compare a file with what the hub says of it: its size, and the hash of a large one."""
    whole = path.is_file() and path.stat().st_size == told.size
    if whole and told.lfs is not None:
        whole = sha256_of(path) == told.lfs.sha256
    if not whole:
        raise UserError(f"{told.rfilename} is not what the hub says that it is: delete {part}, then do the same again")


def _address(kind: Kind, repo: str) -> str:
    return f"datasets/{repo}" if kind.place == "dataset" else repo


def _counted(names: list[str]) -> str:
    return f"{len(names)} file{'s' if len(names) != 1 else ''}"


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return (", ".join(sorted(names)[:SHOWN]) or "nothing") + (f" and {more} more" if more > 0 else "")
