"""A policy of ours as LeRobot trains it and lets it act."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lerobot.policies import PreTrainedPolicy
from torch import Tensor, nn

from la_reconvla import kinds
from la_reconvla.contracts import Batch, PolicyInput
from la_reconvla.data.samples import GREY, greyed, proprio_view, resize, shifted, spread_indices
from la_reconvla.errors import UserError
from la_reconvla.lerobot import description as described
from la_reconvla.lerobot.configuration_la_reconvla import LaReconVLAConfig
from la_reconvla.method.objective import losses
from la_reconvla.method.variants.learned import LearnedSource, fit_saliency
from la_reconvla.method.variants.teacher import follow, teacher_of
from la_reconvla.randomness import generator
from la_reconvla.serving.lerobot_folder import policy_of
from la_reconvla.training.acting import EpisodeNoise
from la_reconvla.training.loop import WHITENED

TASK, PADDED = "task", "action_is_pad"
FRAMES = 32  # training frames that are held at once where an arm learns from them


class LaReconVLAPolicy(PreTrainedPolicy):
    """See `LaReconVLAConfig`. The policy is `policy`, whose weights are those of a run of ours under that prefix.

    Args:
        config: what is trained, or what was.
        dataset_stats: not read, see `la_reconvla.lerobot.description.describe`.
        dataset_meta: the data set; needed by a new policy, and by arms that learn from training frames.

    Raises:
        UserError: a new policy has no data set, or the data lack what it is given.
    """

    config_class = LaReconVLAConfig
    name = "la_reconvla"
    step: Tensor

    def __init__(self, config: LaReconVLAConfig, dataset_stats: Any = None, dataset_meta: Any = None, **_: Any):
        super().__init__(config)
        self._meta, new = dataset_meta, not config.description
        if new:
            if dataset_meta is None:
                raise UserError("a new policy needs a data set, which its action bins come from: train it first")
            recorded = described.read_recorded(dataset_meta.root)
            made = described.describe(config.condition, config.seed, config.study, config.orientation, recorded)
            config.description = kinds.to_json(made)
            taken, _ = described.features_of(made, config.image_features)
            config.input_features = {key: one for key, one in config.input_features.items() if key in taken}
        self.described = policy_of(config.description)
        config.validate_features()
        self.keys = described.camera_keys(self.described.inputs.cameras, config.image_features)
        self.arm, self.train_config = described.arm_of(self.described), config.study.train
        self.policy = self.described.start(self._pictures()) if new else self.described.build()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._teacher: tuple[nn.Module, ...] = ()  # in a tuple: it is no part of the policy's weights
        self._noise, self._episodes = EpisodeNoise(self.described.seed), 0
        self.reset()

    # ------------------------------------------------------------ training

    def get_optim_params(self) -> list[dict[str, Any]]:
        """What trains; matrices alone decay."""
        trained = [p for p in self.parameters() if p.requires_grad]
        plain = [p for p in trained if p.ndim < 2]
        return [{"params": [p for p in trained if p.ndim >= 2]}, {"params": plain, "weight_decay": 0.0}]

    def forward(self, batch: Mapping[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and its terms for the log.

        Raises:
            NotImplementedError: for another reduction than the mean, which the loss of a mask has not.
        """
        if reduction != "mean":
            raise NotImplementedError("the loss is a mean over the batch: leave LeRobot's sample weighting out")
        seed, step = self.described.seed, int(self.step)
        given, teacher, learned = self._batch(batch), None, self.arm.learned_saliency
        if self.training:
            if self.train_config.shift:
                given = shifted(given, self.train_config.shift, generator(seed, "shift", step))
            teacher = self._averaged()
            if learned is not None and learned.refresh and step % learned.refresh == 0:
                self._learn(learned, teacher)
        elif learned is not None and learned.decay is not None:
            teacher = self.policy.backbone  # a trained policy's map of such a source is that of its own weights
        draws, *noise = (generator(seed, name, step) for name in ("mask", "noise", "action noise"))
        done = min(step / self.train_config.steps, 1.0)
        out = losses(self.policy, given, self.arm.reconstruction, draws, done, teacher, *noise)  # pyright: ignore
        logged = {"action_loss": out.action.item()}
        if out.reconstruction is not None:
            logged["reconstruction_loss"] = out.reconstruction.item()
        return out.total, logged

    def update(self) -> None:
        """After each optimizer step."""
        self.step += 1
        if self._teacher and (learned := self.arm.learned_saliency) is not None and learned.decay is not None:
            follow(self._teacher[0], self.policy.backbone, learned.decay)  # pyright: ignore[reportArgumentType]

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """Adapters in the language model's attention; the heads train in full, as they are small and new."""
        linear = [name for name, part in self.named_modules() if isinstance(part, nn.Linear)]
        attention = ("q_proj", "k_proj", "v_proj", "o_proj")
        targets = [n for n in linear if n.endswith(attention) and not ("vision" in n or "visual" in n)]
        heads = ["policy.action_head"]
        if self.arm.budget is not None:
            heads.append("policy.gate")
        if self.policy.reconstruction_head is not None:
            heads.append("policy.reconstruction_head")
        return {"target_modules": targets, "modules_to_save": heads}

    def _averaged(self) -> Any:
        """The teacher of arms that have one. It is not saved: a resumed training begins with today's weights."""
        learned = self.arm.learned_saliency
        if learned is None or learned.decay is None:
            return None
        if not self._teacher:
            self._teacher = (teacher_of(self.policy.backbone),)  # pyright: ignore[reportArgumentType]
        return self._teacher[0]

    def _learn(self, source: LearnedSource, teacher: Any) -> None:
        def moved(batch: dict[str, Any]) -> dict[str, Any]:
            return {k: v.to(self.step.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

        fit_saliency(self.policy, source, (self._batch(moved(b)) for b in self._frames(source.frames)), teacher)

    def _pictures(self) -> Tensor | None:
        """Training images that a random patch embedding is fitted to; None for a policy that sees none."""
        if self.described.blind or not hasattr(self.described.backbone, "stem"):
            return None
        return torch.cat([self._picture(batch, self.keys[0]) for batch in self._frames(WHITENED)])

    def _frames(self, count: int) -> Iterator[dict[str, Any]]:
        """Up to `count` evenly spaced samples of the data set, some at a time, as LeRobot's loader gives them."""
        from lerobot.datasets import LeRobotDataset

        if self._meta is None:
            raise UserError(f"{self.arm.id} learns from training frames: it trains with a data set alone")
        times = [index / self._meta.fps for index in self.config.action_delta_indices]
        data = LeRobotDataset(self._meta.repo_id, root=self._meta.root, delta_timestamps={described.ACTION: times})
        chosen = spread_indices(len(data), count)
        for part in np.array_split(chosen, -(-len(chosen) // FRAMES)):
            yield torch.utils.data.default_collate([data[int(index)] for index in part])

    # ------------------------------------------------------------ acting

    def reset(self, episode: str | None = None) -> None:
        """A new episode begins; without a name, as LeRobot gives none, it gets the next number."""
        self._queue: deque[Tensor] = deque()
        self._episodes += episode is None
        self._noise.begin(str(self._episodes) if episode is None else episode)

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], **_: Any) -> Tensor:
        """Actions [b c a] in the robot's units."""
        return self.policy.act(self._noise(self.policy, self._inputs(batch)))

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], **_: Any) -> Tensor:
        """The next action [b a]; looks at `batch` when those of the last chunk are used up."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    # ------------------------------------------------------------ LeRobot's batch in our terms

    def _batch(self, batch: Mapping[str, Any]) -> Batch:
        shown, actions = self._inputs(batch), batch[described.ACTION].float()
        made = Batch(shown.images, shown.instructions, actions, ~batch[PADDED], shown.wrist, shown.proprio)
        return greyed(made) if self.described.blind else made

    def _inputs(self, batch: Mapping[str, Any]) -> PolicyInput:
        backbone, given = self.described.backbone, self.described.inputs
        images = self._picture(batch, self.keys[0])
        wrist = self._picture(batch, self.keys[1]) if backbone.wrist else None
        proprio, told = None, batch[TASK]
        if backbone.proprio != "none":
            state = batch[described.STATE]
            seen = proprio_view(state.cpu().numpy().astype(np.float32), backbone.proprio, given.standard)
            proprio = torch.from_numpy(seen).to(state.device)
        words = [told] if isinstance(told, str) else list(told)
        return PolicyInput(images, words, wrist, proprio)

    def _picture(self, batch: Mapping[str, Any], key: str) -> Tensor:
        """uint8 [b 3 S S] of LeRobot's float [b 3 H W] in [0, 1], by the function that our own data go through."""
        shown = batch[key]
        if shown.dtype != torch.uint8:
            shown = (shown.float() * 255).round().clamp(0, 255).to(torch.uint8)
        if self.described.blind:
            size = self.described.backbone.image_size
            return torch.full((len(shown), 3, size, size), GREY, dtype=torch.uint8, device=shown.device)
        pixels = shown.permute(0, 2, 3, 1).cpu().numpy()
        resized = resize(pixels, self.described.backbone.image_size, self.described.inputs.fit)
        return torch.from_numpy(resized).permute(0, 3, 1, 2).to(shown.device)
