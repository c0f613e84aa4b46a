"""The load generator, built under the sanitizers for its tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import ROOT

BUILD = ROOT / "build/native-bench-asan"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def bench_binary() -> Path:
    """``nvmet-p2p-bench`` with ASan and UBSan; built once, also where several processes run tests at a time."""
    wanted = ["pkg-config", "--exists", "liburing", "jansson", "libisal"]
    if (
        shutil.which("cc") is None
        or shutil.which("pkg-config") is None
        or subprocess.run(wanted, check=False).returncode
    ):
        pytest.skip("the load generator is not built here: a C compiler, liburing, jansson or libisal is missing")
    BUILD.parent.mkdir(exist_ok=True)
    with BUILD.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (BUILD / "build.ninja").exists():
            options = ["-Dengine=enabled", "-Dsanitize=address", "-Dwerror=true"]
            _run(BIN / "meson", "setup", *options, BUILD, ROOT / "native")
        _run(BIN / "ninja", "-C", BUILD, "bench/nvmet-p2p-bench")
    return BUILD / "bench/nvmet-p2p-bench"


def _run(*command: str | Path) -> None:
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-1000:]}"
