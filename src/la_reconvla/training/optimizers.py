"""What a training step does with its gradients: AdamW, or Muon on the backbone's matrices and AdamW on the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from la_reconvla.errors import unknown

OptimizerName = Literal["adamw", "muon"]
MATRIX_RATE = 5  # times the rate of AdamW: the spectral norm of a step of Muon
BETAS = (0.9, 0.95)


class Optimizers:
    """One or two optimizers of torch that are stepped, scheduled, saved and loaded as one."""

    def __init__(self, *members: torch.optim.Optimizer):
        self.members = members
        self._peaks = [[group["lr"] for group in part.param_groups] for part in members]

    def schedule(self, rate: Any) -> None:
        """Set the rates of this step; `rate` makes one of each group's peak."""
        for part, peaks in zip(self.members, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = rate(peak)

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Divide the gradients by what the loss was multiplied with."""
        for part in self.members:
            scaler.unscale_(part)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """One step of each."""
        for part in self.members:
            part.step() if scaler is None else scaler.step(part)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.members:
            part.zero_grad(set_to_none=True)

    @property
    def moments(self) -> int:
        """Bytes of what is remembered of all parameters, whether it is there yet: one number each by Muon, else two."""
        trained = [(part, group["params"]) for part in self.members for group in part.param_groups]
        return sum((1 if isinstance(part, torch.optim.Muon) else 2) * p.nbytes for part, ps in trained for p in ps)

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered of each parameter, under names below ``optimizer``."""
        return {
            f"optimizer.{number}.{index}.{name}": value
            for number, part in enumerate(self.members)
            for index, state in part.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor], like: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """Put back what `tensors` gave; other names are ignored.

        Args:
            tensors: by their names.
            like: puts what is remembered of a parameter in shards as the parameter is; None where nothing is.
        """
        for number, part in enumerate(self.members):
            state, parameters = part.state_dict(), [p for group in part.param_groups for p in group["params"]]
            for index, name, value in _below(tensors, f"optimizer.{number}."):
                if like is not None and value.shape == parameters[index].shape:
                    value = like(value, parameters[index])
                state["state"].setdefault(index, {})[name] = value
            part.load_state_dict(state)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[int, str, Tensor]]:
    for name, value in tensors.items():
        if name.startswith(prefix):
            index, field = name.removeprefix(prefix).split(".", 1)
            yield int(index), field, value


def optimizers_for(
    module: nn.Module, learning_rate: float, weight_decay: float, kind: OptimizerName = "adamw"
) -> Optimizers:
    """What trains the parameters of `module` that require a gradient.

    ``adamw`` (arXiv 1711.05101) decays matrices only, as is usual for transformers. ``muon`` (Jordan 2024, as in
    `torch.optim.Muon`) makes the step of each linear layer's matrix in ``backbone`` orthogonal. All else is AdamW's:
    embeddings, queries, convolutions, norms, biases, and all of the action head and of the reconstruction head,
    whichever it is, so that arms with other heads differ in nothing else.

    Raises:
        UserError: for an unknown kind.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if kind == "adamw":
        return Optimizers(_adamw([p for _, p in named], learning_rate, weight_decay))
    if kind != "muon":
        raise unknown("optimizer", kind, get_args(OptimizerName))
    hidden = _hidden_matrices(module)
    matrices = [p for _, p in named if id(p) in hidden]
    rest = [p for _, p in named if id(p) not in hidden]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE * learning_rate, weight_decay=weight_decay, momentum=0.95)
    return Optimizers(muon, _adamw(rest, learning_rate, weight_decay))


def _adamw(parameters: list[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)


def _hidden_matrices(module: nn.Module) -> set[int]:
    """Weights of the backbone's linear layers: Muon is for what is between input and output."""
    linear = ((name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear))
    return {id(part.weight) for name, part in linear if name.startswith("backbone.")}
