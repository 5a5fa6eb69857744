"""LeRobot imports every distribution of such a name; this one registers a policy and an environment."""

import la_reconvla.lerobot.plugin  # noqa: F401
