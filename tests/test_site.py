"""The site, and what stands around the code: links, messages that exist, images that can be built, workflows."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

import pytest
import yaml

pytestmark = pytest.mark.documents
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def navigation(entry: object) -> list[str]:
    """Pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, dict):
        return [page for inner in entry.values() for page in navigation(inner)]
    return [page for inner in entry for page in navigation(inner)] if isinstance(entry, list) else []


def test_every_page_is_in_the_navigation_once():
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = navigation(yaml.safe_load(text)["nav"])
    assert len(pages) == len(set(pages))
    assert set(pages) == {page.name for page in DOCS.glob("*.md")}


@pytest.mark.skipif(
    not importlib.util.find_spec("mkdocs"), reason="`make docs` has mkdocs in an environment of its own"
)
def test_the_site_can_be_built(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert (tmp_path / "tutorial.html").exists()


def texts_of_source() -> str:
    """All texts in the code of the package, one below the other, from the bytecode that Python keeps of it."""
    paths = (ROOT / "src").rglob("*.py")
    waiting: list[object] = [SourceFileLoader(path.stem, str(path)).get_code(path.stem) for path in paths]
    found = []
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, CodeType):
            waiting += one.co_consts
        elif isinstance(one, tuple | frozenset):
            waiting += one
    return "\n".join(found)


def test_messages_that_are_explained_exist():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("## By message")[2]
    messages = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(messages) > 10
    known = texts_of_source()
    for message in messages:
        for part in filter(None, (part.strip(" .") for part in message.split("..."))):
            assert part in known, message


def test_the_version_that_is_cited_is_this_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{citation['version']}] - {citation['date-released']}" in changes


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_templates_are_yaml(path: Path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    for job in content.get("jobs", {}).values():
        assert job["timeout-minutes"] and job["steps"]
    if path.name == "release.yml":
        assert content["permissions"] == {"contents": "read"}
        assert content["jobs"]["publish"]["permissions"] == {"id-token": "write"}


@pytest.mark.parametrize("path", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda path: path.name)
def test_images_copy_what_is_there_and_run_as_a_user(path: Path):
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    instructions = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    names = [name for name, _ in instructions]
    assert names[0] == "FROM" and ":" in instructions[0][1] and not instructions[0][1].endswith(":latest")
    assert "USER" in names and names.index("USER") < names.index("ENTRYPOINT")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name, rest in instructions:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and f"!{source.split('/')[0]}" in ignored, source
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", str(path)], check=True)


@pytest.mark.long
def test_the_cpu_image_can_be_built():
    engine = shutil.which("docker") or shutil.which("podman")
    if engine is None or subprocess.run([engine, "info"], capture_output=True).returncode:
        pytest.skip("no container engine runs here")
    subprocess.run(
        [engine, "build", "-f", "docker/cpu.Dockerfile", "-t", "wishbone:test", "."],
        cwd=ROOT,
        check=True,
        env=os.environ,
    )
    subprocess.run([engine, "run", "--rm", "wishbone:test", "--version"], check=True)
