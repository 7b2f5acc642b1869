"""What `mkdocs` does beside its own work: pages link to files of the repository, and the site has copies of these.

A link from docs/ to `../src/...` is right on a forge and leads out of the site. Each such file becomes a page
(Markdown) or a plain file of the site below `repository/`, so that the strict check of links covers them, too. Links to
folders become text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
COPIES = "repository"
MARKDOWN = ".md"


def on_files(files: Any, config: Any) -> Any:
    """Add the files that pages link to, and those that these pages link to in turn."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for target in targets(page):
            if target in seen or not target.is_file() or target.is_relative_to(DOCS):
                continue
            seen.add(target)
            place = in_site(target)
            if target.suffix == MARKDOWN:
                waiting.append(target)
                files.append(File.generated(config, place, content=target.read_text(encoding="utf-8")))
            else:
                files.append(File.generated(config, place, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page lead to the copies."""
    source = of_site(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        text, link = match.groups()
        target = resolved(source, link)
        if target is None:
            return match[0]
        if target.is_dir() or not target.exists():
            return text
        anchor = link.partition("#")[2]
        place = posixpath.relpath(in_site(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"[{text}]({place}{'#' + anchor if anchor else ''})"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def targets(page: Path) -> list[Path]:
    """Files that a page links to or shows."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link for _, link in LINK.findall(text)] + IMAGE.findall(text)
    return [target for link in links if (target := resolved(page, link)) is not None]


def resolved(page: Path, link: str) -> Path | None:
    """Return the file of the repository that a link leads to; None for anchors and addresses."""
    path = link.partition("#")[0]
    if not path or "://" in path or path.startswith(("mailto:", "/")):
        return None
    target = (page.parent / path).resolve()
    return target if target.is_relative_to(ROOT) else None


def in_site(target: Path) -> str:
    """Return where a file of the repository lies in the site."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    return f"{COPIES}/{target.relative_to(ROOT).as_posix()}"


def of_site(place: str) -> Path:
    """Return the file of the repository that lies at a place of the site."""
    inside = place.removeprefix(f"{COPIES}/")
    return ROOT / inside if inside != place else DOCS / place
