"""The project's style as tests: sizes, docstrings, no word of unfinished work, versions that agree, live links."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import nvmet_p2p

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
TEXT_SUFFIXES = {".c", ".h", ".md", ".py", ".service", ".sh", ".toml", ".txt", ".yml", ".build", ".tcl", ""}

# Built from pieces, so that this file passes its own test.
UNFINISHED = re.compile("|".join(["TO" + "DO", "FIX" + "ME", r"\bXX" + r"X\b", "NotImplemented" + "Error"]))
THIS_MACHINE = re.compile(r"(?<![\w.$}/-])/(work|farm|opt/(pypi|wheels))(/|\b)|\.py" + "env")


def _files() -> list[Path]:
    """What git tracks or would track; in an unpacked source archive, or without git, what is there."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        folders = [ROOT / name for name in ("nvmet_p2p", "tests", "deploy", "docs", "native", ".ci")]
        found = {path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts}
        found |= set(ROOT.glob("*.*"))
    else:
        found = {ROOT / name for name in listing.split("\0") if name}
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


FILES = _files()
PYTHON_FILES = [path for path in FILES if path.suffix == ".py"]
TEXT_FILES = [path for path in FILES if path.suffix in TEXT_SUFFIXES and "corpus" not in path.parts]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_python_file = pytest.mark.parametrize("path", PYTHON_FILES, ids=_name)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_files_are_found() -> None:
    assert ROOT / "nvmet_p2p/config.py" in PYTHON_FILES
    assert ROOT / "README.md" in TEXT_FILES


@each_python_file
def test_python_file(path: Path) -> None:
    """Sizes and a module docstring; all else about Python files is ruff's."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert source.count("\n") <= FILE_LINES_MAX, f"more than {FILE_LINES_MAX} lines"
    if tree.body:
        assert ast.get_docstring(tree), "no module docstring"
    for function in _functions(tree):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= FUNCTION_LINES_MAX, f"{function.name} has {length} lines"


@pytest.mark.parametrize("path", TEXT_FILES, ids=_name)
def test_text_file(path: Path) -> None:
    """No word of unfinished work, no path of a developer's machine, no trailing blank."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert not UNFINISHED.search(line), f"line {number}: unfinished work belongs into an issue: {line}"
        assert not THIS_MACHINE.search(line), f"line {number}: a path of one machine: {line}"
        if path.suffix != ".md":
            assert line == line.rstrip(), f"line {number}: trailing blank"


def test_licence_is_there_and_named() -> None:
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("BSD 3-Clause License")
    assert _pyproject()["license"] == "BSD-3-Clause"


def test_version_is_the_same_everywhere() -> None:
    for build in ("meson.build", "native/meson.build"):
        found = re.search(r"version: '([^']+)'", (ROOT / build).read_text(encoding="utf-8"))
        assert found is not None
        assert found[1] == nvmet_p2p.__version__, build
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {nvmet_p2p.__version__}" in changelog


def test_locked_packages_satisfy_pyproject() -> None:
    """requirements.txt pins every direct dependency, at a version that pyproject.toml allows."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    locked = {_normal(pin.name): next(iter(pin.specifier)).version for pin in pins}
    project = _pyproject()
    for wanted in map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"]):
        version = locked.get(_normal(wanted.name))
        assert version is not None, f"{wanted.name} is not in requirements.txt"
        assert wanted.specifier.contains(version), f"{wanted} does not allow {version}"


def test_environment_is_the_locked_one() -> None:
    """A result is only worth something for the versions that requirements.txt names."""
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert metadata.version(name) == version, f"{name}: run `make setup`"


def test_local_links_of_the_pages_lead_somewhere() -> None:
    for page in (path for path in FILES if path.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{_name(page)}: {target}"


def _pyproject() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
