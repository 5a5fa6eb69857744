"""LeRobot's configuration of a policy of ours: which arm, from which preset, with which changes."""

# pyright: reportMissingImports=false
# (LeRobot has an environment of its own.)

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from la_reconvla.errors import UserError
from la_reconvla.lerobot import description as described
from la_reconvla.robot import Orientation
from la_reconvla.serving.lerobot_folder import policy_of
from la_reconvla.study.presets import StudyConfig
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.optimizers import BETAS


@PreTrainedConfig.register_subclass("la_reconvla")
@dataclass
class LaReconVLAConfig(PreTrainedConfig):
    """What is trained.

    Attributes:
        condition: arm, for example C1 or C4.
        preset: source of backbone, heads and schedule.
        changes: what differs from the preset, named as the options of ``la-reconvla train`` and as the backbone's
            fields: ``{"chunk": 8, "wrist": true, "backbone": "google/paligemma-3b-pt-224"}``.
        seed: of weights and masks.
        orientation: how the pictures stand, upright, mirrored or upside_down; by default what the data set says in
            ``meta/la_reconvla.json``, or upright. Nothing is ever turned. LIBERO's public pictures are mirrored.
        n_action_steps: so many actions of a chunk are carried out before the next look; by default all.
        description: the policy itself, `la_reconvla.training.checkpoint.PolicyConfig` as JSON; filled in from the data
            set when training begins, and then it alone counts.
        normalization_mapping: nothing is normalised outside the policy.
    """

    condition: str = "C4"
    preset: str = "small"
    changes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    orientation: Orientation | None = None
    n_action_steps: int | None = None
    description: dict[str, Any] = field(default_factory=dict)
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    @property
    def study(self) -> StudyConfig:
        """Preset and changes."""
        return described.chosen(self.preset, self.changes)

    @property
    def policy(self) -> PolicyConfig | None:
        """What `description` describes; None before there is one."""
        return policy_of(self.description) if self.description else None

    @property
    def chunk_size(self) -> int:
        """Actions decoded per forward pass."""
        return (self.policy or self.study).backbone.chunk

    def validate_features(self) -> None:
        """Raise a `UserError` if data or environment lack what the policy is given."""
        if (policy := self.policy) is None:
            return
        inputs, outputs = described.features_of(policy, self.image_features)
        given = {**(self.input_features or {}), **(self.output_features or {})}
        for key, wanted in {**inputs, **outputs}.items():
            if key not in given:
                raise UserError(
                    f"the policy takes '{key}', which is not among {', '.join(given)}: rename it (--rename_map)"
                )
            has, wants = list(given[key].shape), wanted["shape"]
            if wanted["type"] != "VISUAL" and has != wants:  # pictures are resized
                raise UserError(f"'{key}' has the shape {has}, the policy was made for {wants}")
        if self.n_action_steps is not None and not 1 <= self.n_action_steps <= self.chunk_size:
            raise UserError(f"n_action_steps is {self.n_action_steps}: a chunk has 1 to {self.chunk_size} actions")

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW with the preset's numbers; LeRobot has no Muon."""
        train = self.study.train
        rate, decay = train.learning_rate, train.weight_decay
        return AdamWConfig(lr=rate, betas=BETAS, weight_decay=decay, grad_clip_norm=train.clip)

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Warm-up and a cosine to a hundredth over the preset's steps; LeRobot scales both to a shorter training."""
        train, rate = self.study.train, self.study.train.learning_rate
        return CosineDecayWithWarmupSchedulerConfig(train.warmup, train.steps, rate, rate / 100)

    @property
    def observation_delta_indices(self) -> None:
        """The present alone."""

    @property
    def action_delta_indices(self) -> list[int]:
        """A chunk, from the present on."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No reward."""
