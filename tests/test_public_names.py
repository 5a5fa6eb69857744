"""What `import la_reconvla` gives: light at first, and the same objects as their modules hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import la_reconvla

ISSUED = {
    *("Policy", "Reconstruction", "MAEDecoder", "ActionBins", "AttentionMask", "RandomMask", "Batch", "Features"),
    *("losses", "saliency", "load_policy", "condition", "CONDITIONS", "preset", "read_results"),
    *("MaskedReconstruction", "language_reaches_patches", "register", "add_condition"),
}
TREE = ast.parse(Path(la_reconvla.__file__).read_text(encoding="utf-8"))


def test_importing_it_loads_no_heavy_package():
    code = "import sys, la_reconvla; la_reconvla.__version__; dir(la_reconvla); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"torch", "numpy", "transformers", "mujoco", "h5py"})


def typed() -> dict[str, str]:
    """Name -> module of what type checkers see."""
    (block,) = [node for node in TREE.body if isinstance(node, ast.If)]
    return {
        name.name: str(node.module)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }


def test_type_checkers_star_imports_and_lookups_see_the_same_names():
    assert set(typed()) == set(la_reconvla.__all__) == set(la_reconvla._HOMES)
    assert {name: f"la_reconvla.{home}" for name, home in la_reconvla._HOMES.items()} == typed()
    assert ISSUED <= set(la_reconvla.__all__) <= set(dir(la_reconvla))


@pytest.mark.parametrize("name", la_reconvla.__all__)
def test_each_name_is_what_its_module_holds(name):
    module = sys.modules.get(typed()[name]) or __import__(typed()[name], fromlist=[name])
    assert getattr(la_reconvla, name) is getattr(module, name)
    assert la_reconvla.__dict__[name] is getattr(module, name)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="maedecoder"):
        la_reconvla.maedecoder  # noqa: B018
    assert not hasattr(la_reconvla, "torch")
