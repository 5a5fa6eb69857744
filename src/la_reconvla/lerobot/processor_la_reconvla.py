"""What LeRobot does with observations and actions around the policy: names, batch dimension, device."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors


def make_la_reconvla_pre_post_processors(config: Any, dataset_stats: Any = None) -> tuple[Any, Any]:
    """LeRobot's usual pipelines; nothing is normalised, as the policy does that by its own bins."""
    return make_default_pre_post_processors(config, dataset_stats)
