"""What the documentation site has beside docs/: README and its neighbours, the files that pages link to, and the API.

A hook of MkDocs (`make docs`). Links in the sources are relative to the repository, so that they work on the forge;
here they are turned into links that work on the site. What is linked to and is no page is copied beside the pages.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src/la_reconvla"
OUTSIDE = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}}
LINK = re.compile(r"(\]\(|\b(?:src|srcset|href)=\")([^)\s\"#]+)")


def place(target: Path) -> str:
    """Where a file of the repository is on the site, relative to its root."""
    name = target.relative_to(ROOT).as_posix()
    return OUTSIDE.get(name) or (
        target.relative_to(DOCS).as_posix() if target.is_relative_to(DOCS) else f"files/{name}"
    )


def linked(text: str, source: Path) -> dict[str, Path]:
    """The relative links of a page as they are written, and the files that they lead to."""
    targets = {target for _, target in LINK.findall(text) if ":" not in target and not target.startswith("/")}
    return {target: Path(os.path.normpath(source.parent / target)) for target in targets}


def reference() -> dict[str, str]:
    """The pages of the API: an overview, and one page for each room of the package (a folder or a file)."""
    index = ["# The package, room by room", "::: la_reconvla", "| room | what |\n|---|---|"]
    pages = {}
    for path in sorted(PACKAGE.glob("[a-z]*")):
        inside = sorted(path.rglob("*.py")) or [path]
        if path.name.startswith("__") or inside[0].suffix != ".py":
            continue
        names = [file.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".") for file in inside]
        names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
        said = (ast.get_docstring(ast.parse(inside[0].read_text(encoding="utf-8"))) or "").splitlines()[0]
        pages[path.stem] = "\n\n".join([f"# {path.stem}", *(f"::: {name}" for name in names)])
        index[-1] += f"\n| [`{path.stem}`]({path.stem}.md) | {said} |"
    return {"index": "\n\n".join(index), **pages}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, the files that pages link to, and a page for each room of the package."""
    sources = {DOCS / file.src_uri: file for file in files.documentation_pages()}
    sources |= {
        ROOT / name: File.generated(config, page, abs_src_path=str(ROOT / name)) for name, page in OUTSIDE.items()
    }
    known = {file.src_uri for file in files}
    for source, page in sources.items():
        page.source = source
        for target in linked(source.read_text(encoding="utf-8"), source).values():
            if target.is_file() and target.suffix != ".md" and place(target) not in known:
                known.add(place(target))
                files.append(File.generated(config, place(target), abs_src_path=str(target)))
        if page.src_uri not in known:
            files.append(page)
    (api,) = [entry["API"] for entry in config.nav if "API" in entry]
    for name, content in reference().items():
        files.append(File.generated(config, f"api/{name}.md", content=content))
        api += [{name: f"api/{name}.md"}] if name != "index" else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that are relative to the repository into links that are relative to the page."""
    source = getattr(page.file, "source", None)
    if source is None:
        return markdown
    files = linked(markdown, source)

    def moved(match: re.Match[str]) -> str:
        before, target = match.groups()
        if target not in files or not files[target].is_relative_to(ROOT):
            return match[0]
        return before + posixpath.relpath(place(files[target]), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)
