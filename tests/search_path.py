"""Where test modules are, and the scripts that some of them read; light, because worker processes import it too."""

import os
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = (HERE, *sorted(path for path in HERE.iterdir() if path.is_dir()), HERE.parent / "benchmarks")
SEARCH = os.pathsep.join(filter(None, (*map(str, FOLDERS), os.environ.get("PYTHONPATH"))))
"""PYTHONPATH of a process that imports test modules, beside what this one's says: that may be where the package is."""
