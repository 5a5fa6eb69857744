"""LA-ReconVLA: language-attention-guided masked reconstruction for vision-language-action policies.

The names below are imported when they are first used: ``import la_reconvla`` loads neither PyTorch nor a simulator.
`losses` and `saliency` are the functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from la_reconvla.conditions import CONDITIONS, Condition, add_condition, condition
    from la_reconvla.contracts import Batch, Features
    from la_reconvla.kinds import register
    from la_reconvla.masked_reconstruction import MaskedReconstruction, language_reaches_patches
    from la_reconvla.method.actions import ActionBins
    from la_reconvla.method.decoder import MAEDecoder
    from la_reconvla.method.mask import AttentionMask, RandomMask
    from la_reconvla.method.objective import losses
    from la_reconvla.method.policy import Policy
    from la_reconvla.method.reconstruction import Reconstruction
    from la_reconvla.method.saliency import saliency
    from la_reconvla.study.presets import preset
    from la_reconvla.study.results import read_results
    from la_reconvla.training.checkpoint import load_policy

__version__ = "0.2.0"

_HOMES = {
    "CONDITIONS": "conditions",
    "ActionBins": "method.actions",
    "AttentionMask": "method.mask",
    "Batch": "contracts",
    "Condition": "conditions",
    "Features": "contracts",
    "MAEDecoder": "method.decoder",
    "MaskedReconstruction": "masked_reconstruction",
    "Policy": "method.policy",
    "RandomMask": "method.mask",
    "Reconstruction": "method.reconstruction",
    "add_condition": "conditions",
    "condition": "conditions",
    "language_reaches_patches": "masked_reconstruction",
    "load_policy": "training.checkpoint",
    "losses": "method.objective",
    "preset": "study.presets",
    "read_results": "study.results",
    "register": "kinds",
    "saliency": "method.saliency",
}

__all__ = [
    "CONDITIONS",
    "ActionBins",
    "AttentionMask",
    "Batch",
    "Condition",
    "Features",
    "MAEDecoder",
    "MaskedReconstruction",
    "Policy",
    "RandomMask",
    "Reconstruction",
    "add_condition",
    "condition",
    "language_reaches_patches",
    "load_policy",
    "losses",
    "preset",
    "read_results",
    "register",
    "saliency",
]


def __getattr__(name: str) -> Any:
    """The public object of this name (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found  # the next look needs no call
    return found


def __dir__() -> list[str]:
    """What is there already, and the names that come when they are used."""
    return sorted({*globals(), *__all__})
