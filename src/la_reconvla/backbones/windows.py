"""Who attends to whom where layers have sliding windows (Gemma 2, Mistral).

The library counts a window in places of the sequence, padding included: padding inside the sequence uses the window up,
and an instruction beside a longer one gives other actions than alone. Here a window counts tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

Masks = dict[str, Tensor] | Tensor
"""As the library's language models take masks that are made already: bool [b 1 s s], one for each kind of layer."""


def window_masks(config: Any, present: Shaped[Tensor, "b s"], queries: int, prefix: int = 0) -> Masks | None:
    """Causal masks whose windows count tokens.

    Args:
        config: of the language model, from the library.
        present: not 0 for tokens; 0 for padding, and for places that no token has taken yet.
        queries: `s`; or 1, the last token.
        prefix: so many first places see each other whole, whatever the window.

    Returns:
        None where no window is shorter than the sequence: the library's own mask is right, and cheaper.
    """
    width, places = getattr(config, "sliding_window", None), present.shape[1]
    if width is None or places <= width:
        return None
    place = torch.arange(places, device=present.device)
    own, counted = place[places - queries :, None], (present != 0).long().cumsum(1)
    together = (own < prefix) & (place < prefix)
    full = ((place <= own) | together) & (present != 0)[:, None]
    near = counted[:, None] > counted[:, places - queries :, None] - width
    full, sliding = full[:, None], (full & (near | together))[:, None]
    mixed = getattr(config, "layer_types", None) is not None  # else all layers have the window
    return {"full_attention": full, "sliding_attention": sliding} if mixed else sliding
