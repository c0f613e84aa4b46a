"""`pip install .`: the wheel that meson-python builds holds the package, all of it and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nvmet_p2p

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["LICENSE", "README.md", "meson.build", "pyproject.toml"]
FOLDERS = ["native", "nvmet_p2p", "subprojects"]


def _run(command: list[str], folder: Path) -> None:
    """Runs a build command with meson and ninja of this environment; fails with what it said."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "nvmet_p2p/wire/__pycache__").mkdir(exist_ok=True)
    (source / "nvmet_p2p/wire/__pycache__/left.over.pyc").touch()
    # A file that meson.build was never told about
    (source / "nvmet_p2p/wire/brand_new.py").touch()

    build = "import mesonpy; mesonpy.build_wheel('..')"
    _run([sys.executable, "-c", build], source)

    (wheel,) = tmp_path.glob("*.whl")
    name, version, *tags = wheel.stem.split("-")
    assert (name, version, tags[:2]) == ("nvmet_p2p", nvmet_p2p.__version__, ["py3", "none"])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith("/entry_points.txt"))
        entry_points = archive.read(metadata).decode().replace(" ", "")
    assert "nvmet-p2p=nvmet_p2p.cli.main:main" in entry_points
    programs = {name.rpartition("/")[2] for name in names if ".data/scripts/" in name}
    built = {"nvmet-p2p-dataplane", "nvmet-p2p-bench"}  # not on a machine without a compiler or their libraries
    assert (programs, tags[2] == "any") in ((built, False), (set(), True))
    # Beside a program the modules are "purelib" of a wheel that is for one platform.
    packaged = {name.split(".data/purelib/")[-1] for name in names} - {
        name for name in names if ".dist-info/" in name or ".data/scripts/" in name
    }
    wanted = {str(path.relative_to(source)) for path in source.glob("nvmet_p2p/**/*") if path.is_file()}
    assert packaged == {name for name in wanted if "__pycache__" not in name}
    assert "nvmet_p2p/wire/brand_new.py" in packaged


def test_the_data_plane_folder_sets_up_alone(tmp_path: Path) -> None:
    _run(["meson", "setup", str(tmp_path / "build"), str(ROOT / "native")], tmp_path)
