"""deploy/install-packages.sh, with a dpkg and an apt of the test's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/install-packages.sh"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of commands: package `here` is installed, `gone` was removed; what apt-get is told goes into a file."""
    commands = tmp_path / "bin"
    commands.mkdir()
    _command(commands, "dpkg-query", 'case "$3" in here) echo installed;; gone) echo config-files;; *) exit 1;; esac')
    _command(commands, "apt-get", f'echo "$@" >> {tmp_path}/apt')
    _command(commands, "id", "echo 0")
    for name in ("sed", "env", "sh"):
        found = next(Path(folder) / name for folder in ("/usr/bin", "/bin") if (Path(folder) / name).exists())
        (commands / name).symlink_to(found)
    return tmp_path


def _command(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def _run(machine: Path, *wanted: str) -> tuple[int, str, str]:
    """Exit status, what was said, and what apt-get was told last."""
    (machine / "list").write_text("# comment\n" + "".join(f"{name}  # why\n" for name in wanted), encoding="utf-8")
    done = subprocess.run(
        [str(SCRIPT), str(machine / "list"), str(machine / "absent-list")],
        env={**os.environ, "PATH": str(machine / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    apt = (machine / "apt").read_text(encoding="utf-8").splitlines() if (machine / "apt").exists() else [""]
    return done.returncode, done.stdout + done.stderr, apt[-1]


def test_nothing_missing(machine: Path) -> None:
    assert _run(machine, "here") == (0, "", "")


def test_the_missing_ones_are_installed(machine: Path) -> None:
    status, said, apt = _run(machine, "here", "gone", "new")
    assert (status, said) == (0, "installing Debian packages: gone new\n")
    assert apt.endswith("install -y --no-install-recommends gone new")


def test_without_root_and_sudo(machine: Path) -> None:
    _command(machine / "bin", "id", "echo 1000")
    assert _run(machine, "new") == (1, "Not root, and there is no sudo. As root: apt-get install new\n", "")
    assert _run(machine, "here") == (0, "", "")


def test_without_apt(machine: Path) -> None:
    (machine / "bin/apt-get").unlink()
    assert _run(machine, "new") == (1, "This is not a Debian system. Install what corresponds to: new\n", "")
