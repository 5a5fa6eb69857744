"""Files of a model, from a folder or through the cache of the Hugging Face hub, and a hash that names its weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from la_reconvla.errors import UserError

BACKBONE = "--backbone "


def hub_files(source: str, revision: str | None, patterns: tuple[str, ...] | None, give: str = BACKBONE) -> Path:
    """Folder with these files (None: all), downloaded if need be; on the hub its name is the commit.

    `give` is the option that takes a folder instead, and a space; empty for none.

    Raises:
        UserError: in one sentence, with what to do.
    """
    from huggingface_hub import snapshot_download

    if Path(source).is_dir():
        return Path(source)
    how = f"`hf download {source} --local-dir FOLDER` where there is a network, then {give}FOLDER"
    missing = "is no folder here and no repository on the hub that you may see: check the name"
    with explained(source, missing=missing, refused="cannot be downloaded", otherwise=how, revision=revision):
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns) if patterns else None))


@contextmanager
def explained(
    repo: str, *, missing: str, refused: str, otherwise: str, revision: str | None = None, token: str = "a token"
) -> Iterator[None]:
    """Around what asks the hub: its errors in one sentence, with what to do.

    Args:
        repo: who is asked about.
        missing: what it is if there is no such repository, or a private one of others.
        refused: what it is if the hub says no, or nothing.
        otherwise: what helps where the hub cannot be reached.
        revision: the one that is asked for.
        token: what to log in with.

    Raises:
        UserError: in the place of every error of the library, of its HTTP client, and of the machine.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repo} is gated: accept its licence on its page of the Hugging Face hub, run `hf auth login`, and then "
            "the same command again"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision {revision} on the hub: check it, or leave it out") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(f"{repo} {missing}, or run `hf auth login` if it is private") from error
    except (errors.HTTPError, OSError) as error:  # pyright: ignore  # the client's own: no connection, no answer in time
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError)
        helps = f"run `hf auth login` with {token}" if login else otherwise
        raise UserError(f"{repo} {refused} ({first}): {helps}") from error


def folder_hash(folder: Path) -> str:
    """Hash of all weights in a folder.

    Raises:
        UserError: if there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors: give the folder that save_pretrained wrote the weights to")
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _hash_of(stamps)


@functools.lru_cache
def _hash_of(stamps: tuple[tuple[str, int, int], ...]) -> str:
    """SHA-256 over names and bytes; once per process, as size and time of change are part of the key."""
    digest = hashlib.sha256()
    for name, _, _ in stamps:
        digest.update(Path(name).name.encode())
        with open(name, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:32]


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no progress bars of the library inside."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
