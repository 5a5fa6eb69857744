"""Policies of this package in LeRobot: train, adapt, evaluate and run there. LeRobot is imported where it is used only.

LeRobot finds policy and environment by the distribution in ``plugins/``, which imports ``plugin.py``.
It chooses the names of three files here: ``configuration_X.py`` leads it to ``modeling_X.py`` and ``processor_X.py``.
"""
