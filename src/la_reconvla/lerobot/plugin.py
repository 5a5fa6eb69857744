"""What LeRobot knows after this import: the policy type ``la_reconvla`` and the environment type ``libero_pro``."""

from la_reconvla.lerobot import configuration_la_reconvla, libero_pro

__all__ = ["configuration_la_reconvla", "libero_pro"]
