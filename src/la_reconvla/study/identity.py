"""What makes two studies the same: all of a configuration but how large it is and how it is read; and how one grows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from la_reconvla import kinds, layout
from la_reconvla.errors import UserError
from la_reconvla.study.begun import Begun, read_begun
from la_reconvla.study.presets import PRESETS, StudyConfig
from la_reconvla.study.provenance import versions
from la_reconvla.text_table import say
from la_reconvla.training.checkpoint import SAVED
from la_reconvla.training.devices import pick_precision
from la_reconvla.training.loop import TrainConfig
from la_reconvla.training.parts import Part

GROWS = (
    *("seeds", "conditions", "episodes", "floor_episodes", "floor_arm"),
    *("also_official", "elsewhere", "elsewhere_episodes"),
)
JOINS = ("seeds", "conditions", "elsewhere")  # of these, the lists
COUNTED = {  # and what the options count
    "episodes": "episodes per task",
    "also_official": "official states per task",
    "elsewhere_episodes": "states per task of each other suite",
}
READ = ("gaze", "judged")  # the source of boxes belongs to the arms that use them; a verdict changes no record


def identity_of(config: StudyConfig, device: str) -> dict[str, Any]:
    """What decides the records of a study, as ``study.json`` holds it.

    The device may change between two runs of one study, the precision that it brings may not: arms are paired.
    """
    values = {**kinds.to_json(config), "train": config.train.identity}
    own = {key: value for key, value in values.items() if key not in (*GROWS, *READ)}
    precision = str(pick_precision(config.train.precision, torch.device(device)))
    return {"schema": layout.SCHEMA, "config": own, "versions": versions(), "precision": precision}


def with_defaults(held: Mapping[str, Any], config: StudyConfig) -> dict[str, Any]:
    """The content of a ``study.json``, with defaults for fields that are newer than the file."""
    return {**held, "config": kinds.with_defaults(held.get("config"), config)}


def config_of(begun: Begun) -> StudyConfig:
    """The study that was last asked for; how training is reported, and where it runs, is as in the preset.

    Raises:
        UserError: it is of another version, or a class of it is not registered.
    """
    base: dict[str, Any] = kinds.to_json(PRESETS.get(begun.config.get("preset", ""), StudyConfig()))
    training = {**base["train"], **begun.config.get("train", {})}
    try:
        raw = {**base, **begun.config, **begun.size, **begun.read, "train": training}
        return kinds.from_json(raw, (*SAVED, StudyConfig, TrainConfig, Part))
    except (TypeError, ValueError) as error:
        raise UserError(f"{layout.STUDY} describes no study of this version ({error})") from error


def grown(config: StudyConfig, folder: Path) -> StudyConfig:
    """The study with all that its folder already has: arms, seeds, suites and episodes join it, and none leaves.

    What is kept beyond `config` is printed.
    """
    path = folder / layout.STUDY
    if not path.exists() or not (held := read_begun(path).size):
        return config
    lists = {key: (*held[key], *(x for x in getattr(config, key) if x not in held[key])) for key in JOINS}
    done = {key: held[key] for key in set(GROWS) - set(JOINS) - {"floor_arm"}}
    if not held["elsewhere"]:
        del done["elsewhere_episodes"]  # a default that nothing was rolled out by
    if config.placement == "official":
        del done["also_official"]
    counts = {key: max(count, getattr(config, key)) for key, count in done.items()}
    whole = replace(config, **lists, **counts, floor_arm=held["floor_arm"])
    for key in JOINS:
        if kept := [str(x) for x in getattr(whole, key) if x not in getattr(config, key)]:
            say(f"{folder} already has the {key} {', '.join(kept)}: they stay in the study")
    for key, told in COUNTED.items():
        if (kept := getattr(whole, key)) > (asked := getattr(config, key)):
            say(f"{folder} already has {kept} {told}, {asked} are asked for: all of them stay in the study")
    return whole
