"""What a reconstruction head costs: counted by hand, and alike for both heads of a preset."""

from __future__ import annotations

import pytest

from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.conditions import C1, C2, CONDITIONS
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.study.head_cost import head_cost
from la_reconvla.study.presets import PRESETS


def test_the_cost_of_a_head_is_that_of_its_matrix_products() -> None:
    """An MAE decoder of depth 1 by hand: keys and values (2 d^2 multiply-adds) of all tokens, the rest of the block
    (10 d^2) at the masked ones only, forward and twice that backward."""
    d, width, n, k, q = 32, 16, 16, 4, 192
    cost = head_cost(C2.with_reconstruction_head(MAEDecoder(1, d, 4)), width, (4, 4), 8)
    assert cost is not None
    forward = 2 * (n * (2 * d * d + width * d) + k * (10 * d * d + d * q))
    attention = 2 * 2 * k * n * d  # logits and values
    assert cost.operations == 3 * (forward + attention)
    module = MAEDecoder(1, d, 4).build(width, (4, 4), 8)
    assert cost.parameters == sum(p.numel() for p in module.parameters())
    assert head_cost(C1, width, (4, 4), 8) is None


@pytest.mark.parametrize("preset", ["quick", "small"])
def test_both_heads_of_a_preset_cost_about_the_same(preset: str) -> None:
    config = PRESETS[preset]
    b = config.backbone
    assert isinstance(b, SmallPaliGemma)
    mae, diffusion = (
        head_cost(CONDITIONS[id].with_reconstruction_head(config.decoder, config.denoiser), b.width, b.grid, b.patch)
        for id in ("C4", "A1")
    )
    assert mae is not None
    assert diffusion is not None
    assert diffusion.operations == pytest.approx(mae.operations, rel=0.5)
