"""A policy that LeRobot saved, as files: what it says of itself, and whether it may be loaded. Needs no LeRobot.

A folder decides nothing that is run. Only known types are loaded, whose code is LeRobot's or ours; only safetensors;
only processing steps that an installed package has registered under a name, never one that is given as a class's path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from la_reconvla.data.lerobot_layout import ACTION, IMAGES, STATE
from la_reconvla.errors import UserError, unknown
from la_reconvla.robot import LIBERO_ACTIONS, Quality, proprio_width
from la_reconvla.storage import read_json

if TYPE_CHECKING:  # the command line reads this file before torch is loaded
    from la_reconvla.training.checkpoint import PolicyConfig

SCHEME = "lerobot:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
RENAMES = "rename_observations_processor"
OURS = "la_reconvla"
TYPES = ("act", "diffusion", OURS, "pi0", "pi05", "smolvla")  # others run code that their folder or the hub names
SMALL = ("act", "diffusion")  # millions of weights; the others have billions
LIBERO_KEYS = ("image", "image2")  # what LeRobot calls LIBERO's cameras, the main one first
MAIN, WRIST = ("image", "agentview"), ("image2", "wrist_image", "wrist", "eye_in_hand")
STATE_WIDTH, ACTION_WIDTH = proprio_width("all"), len(LIBERO_ACTIONS)


def is_lerobot(run: str) -> bool:
    """Whether a policy is named as a folder of LeRobot's."""
    return run.startswith(SCHEME)


@dataclass(frozen=True, eq=False)
class LeRobotFolder:
    """A folder that can be loaded.

    Attributes:
        path: of the folder.
        config: content of its ``config.json``.
        renames: of observations, by its first processing step: their names in the world, and in the policy.
        policy: what a policy of ours is; None of others.
    """

    path: Path
    config: Mapping[str, Any]
    renames: Mapping[str, str]
    policy: PolicyConfig | None

    @classmethod
    def read(cls, path: Path) -> LeRobotFolder:
        """Read and check the files.

        Raises:
            UserError: it is no such folder, or one that is not loaded; the message says why.
        """
        for below in (path / "pretrained_model", path / "checkpoints/last/pretrained_model"):
            if below.is_dir():
                raise UserError(f"{path} is a folder of lerobot-train: name the policy in it, {below}")
        config = _read_object(path / CONFIG)
        if not isinstance(config.get("type"), str):
            hint = f"it is a run of la-reconvla: leave '{SCHEME}' out" if "schema" in config else "it has no 'type'"
            raise UserError(f"{path} is no policy of LeRobot: {hint}")
        if config["type"] not in TYPES:
            raise unknown("type of LeRobot policy", config["type"], TYPES)
        weights = ADAPTER_WEIGHTS if config.get("use_peft") else WEIGHTS
        if not (path / weights).exists():
            raise UserError(f"{path} has no {weights}: other formats of weights, which may be pickled, are not loaded")
        steps = [step for name in (PREPROCESSOR, POSTPROCESSOR) for step in _steps(path / name)]
        for step in steps:
            if not isinstance(step, dict) or not isinstance(step.get("registry_name"), str):
                raise UserError(f"{path}: a processing step has no registered name, but names code of its own: refused")
        try:
            renames = next((dict(s["config"]["rename_map"]) for s in steps if s["registry_name"] == RENAMES), {})
            shapes = {key: (one["type"], tuple(one["shape"])) for key, one in _features(config).items()}
            if not all(type(n) is int for _, shape in shapes.values() for n in shape):
                raise TypeError(f"shapes are no numbers: {shapes}")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: {CONFIG} or {PREPROCESSOR} is damaged ({error!r}): save it again") from error
        found = cls(path, config, renames, policy_of(config.get("description")) if config["type"] == OURS else None)
        found.base()
        return found

    @property
    def type(self) -> str:
        """LeRobot's name of the kind of policy."""
        return self.config["type"]

    @property
    def quality(self) -> Quality:
        """How its pictures were rendered; those of others look as LIBERO's do."""
        return "official" if self.policy is None else self.policy.quality

    @property
    def each_step(self) -> bool:
        """Whether it is asked at every step for one action: it keeps what it saw, or averages over its chunks."""
        history = self.config.get("n_obs_steps")
        return (type(history) is int and history > 1) or self.config.get("temporal_ensemble_coeff") is not None

    @property
    def image_size(self) -> int:
        """Side of the pictures that it takes, 256 where they are not square."""
        shapes = [_features(self.config)[key]["shape"] for key in self.cameras()]
        return shapes[0][-1] if shapes and len(set(shapes[0][-2:])) == 1 else 256

    @property
    def takes_state(self) -> bool:
        """Whether it is given the robot's state."""
        return STATE in _features(self.config)

    def cameras(self) -> dict[str, bool]:
        """Its cameras, under the policy's own names; True for the wrist's.

        Raises:
            UserError: it takes something that LIBERO has not, or gives other actions.
        """
        features, worldly = _features(self.config), {policys: worlds for worlds, policys in self.renames.items()}
        for name, width in ((STATE, STATE_WIDTH), (ACTION, ACTION_WIDTH)):
            if name in features and list(features[name]["shape"]) != [width]:
                raise UserError(f"{self.path}: LIBERO's '{name}' is {width} numbers, not {features[name]['shape']}")
        if ACTION not in features:
            raise UserError(f"{self.path}: it gives no '{ACTION}'")
        stands = "mirrored" if self.policy is None else self.policy.inputs.orientation
        if stands != "mirrored":
            raise UserError(
                f"{self.path} takes pictures that are {stands}, LIBERO's are mirrored: if it was trained on these, "
                "train it with --policy.orientation=mirrored"
            )
        found = {}
        for key, feature in features.items():
            if feature["type"] == "VISUAL" and "empty_camera" not in key:  # SmolVLA fills these in itself
                name = worldly.get(key, key).removeprefix(IMAGES)
                if name not in (*MAIN, *WRIST):
                    raise UserError(
                        f"{self.path} takes a camera '{name}', and LIBERO's are image and image2: say in "
                        f"{PREPROCESSOR}, step {RENAMES}, which of the two becomes '{key}'"
                    )
                found[key] = name in WRIST
        return found

    def base(self) -> LeRobotFolder | None:
        """The policy below adapters; None without adapters.

        Raises:
            UserError: it is not on this machine, or has adapters itself.
        """
        if not self.config.get("use_peft"):
            return None
        below = Path(str(_read_object(self.path / ADAPTER).get("base_model_name_or_path")))
        if not below.is_dir():
            raise UserError(
                f"{self.path} holds adapters of {below}, which is no folder here: bring it, and name it in {ADAPTER}"
            )
        if _read_object(below / CONFIG).get("use_peft"):
            raise UserError(
                f"{self.path} holds adapters of {below}, which are adapters too: merge those in LeRobot "
                f"(merge_and_unload), save that, and name it in {ADAPTER}"
            )
        return LeRobotFolder.read(below)


def policy_of(description: Any) -> PolicyConfig:
    """What a policy of ours is, from the field ``description`` of its configuration.

    Raises:
        UserError: it describes none, or one of another version.
    """
    from la_reconvla.training.checkpoint import PolicyConfig

    return PolicyConfig.from_json(description, "the field 'description'")


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: not a JSON object; save the policy again")
    return content


def _steps(path: Path) -> list[Any]:
    if not path.exists():
        raise UserError(
            f"{path} is missing: the policy was saved before LeRobot had processors; convert it, "
            "python -m lerobot.processor.migrate_policy_normalization --pretrained-path FOLDER"
        )
    steps = _read_object(path).get("steps")
    return steps if isinstance(steps, list) else []


def _features(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**(config.get("input_features") or {}), **(config.get("output_features") or {})}
