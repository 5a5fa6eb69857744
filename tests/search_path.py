"""Where test modules are; light, because worker processes import it too."""

import os
from pathlib import Path

HERE = Path(__file__).parent
SEARCH = os.pathsep.join(map(str, (HERE, *sorted(path for path in HERE.iterdir() if path.is_dir()))))
"""PYTHONPATH of a process that imports test modules."""
