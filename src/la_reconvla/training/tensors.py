"""Named tensors on disk: safetensors, written atomically. Nothing is pickled and nothing is unpickled."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from la_reconvla.errors import UserError
from la_reconvla.storage import atomic_write, parse_json, sha256_of

METADATA = "la_reconvla"


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], **metadata: Any) -> None:
    """Atomic safetensors file, with `metadata` as one value of JSON: safetensors writes several in a random order, and
    equal weights would get files of different hashes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(contiguous, temporary, metadata={METADATA: json.dumps(metadata)})


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: if the file is missing or damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _metadata(file)  # noqa: SIM118 (not a mapping)


def load_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a safetensors file, whose tensors are not read. Errors as `load_tensors`."""
    with _opened(path) as file:
        return _metadata(file)


def _metadata(file: Any) -> dict[str, Any]:
    found = {key: parse_json(value) for key, value in (file.metadata() or {}).items()}
    return found[METADATA] if isinstance(found.get(METADATA), dict) else found  # files before 2026-11-29 had many keys


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    _require(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and train again") from error


def flat_name(name: str) -> str:
    """A weight's name in transformers from 5.6 on; before, a vision tower's weights are one module deeper."""
    return name.replace("vision_tower.vision_model.", "vision_tower.")


def named_as(tensors: Mapping[str, torch.Tensor], expected: Iterable[str]) -> dict[str, torch.Tensor]:
    """The same tensors under the names that this version of transformers has for them.

    Args:
        tensors: as a file has them, whatever version wrote it.
        expected: the names here; a tensor that is none of them keeps its own.
    """
    here = {flat_name(name): name for name in expected}
    return {here.get(flat_name(name), name): tensor for name, tensor in tensors.items()}


def file_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's bytes.

    Raises:
        UserError: if it does not exist.
    """
    _require(path)
    return sha256_of(path)[:16]


def _require(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} does not exist: train this run first, or finish it by the same command")
