"""Where a policy trains and acts, and in which precision."""

from __future__ import annotations

import torch

from la_reconvla.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device of this name; ``auto`` takes a GPU if there is one.

    Raises:
        UserError: if it does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]  # CUDA explains at length how to debug its kernels
        raise UserError(f"device '{name}' is not usable here ({reason}): {_devices()}, or use --device cpu") from error


def _devices() -> str:
    """In words, the accelerators that are there."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return f"there is {', '.join(names)}" if names else "there is no GPU"


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass. ``auto``: bf16 on a GPU that has it, else fp16 on a GPU, else fp32."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
