"""The target in the guest: this machine's own Python, virtual environment and data plane, as read-only disks.

Two images, below /target in the guest once ``target-enter`` has been called:

    runtime-HASH/root.img    in the lab's cache: the interpreter with its standard library, the packages that the target
                             needs at run time, every shared library of theirs, all at the paths that they have here
    source.img               in the run folder of each guest: ``nvmet_p2p`` (of this checkout, or of the folder that
                             NVMET_P2P_LAB_SOURCE names) and the data plane as they are now

So what runs in the guest is what runs here, byte for byte, with this machine's C library; the guest's own userland
(another Debian) is left alone. Imports come from a disk, not over 9p: a daemon starts in seconds under emulation.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from nvmet_p2p.dataplane.native.process import PROGRAM, find_program
from tests.lab import spdk
from tests.lab.debian import ImageError, disk_image, run
from tests.lab.image import part

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.prefix}/bin/python"
"""The interpreter behind ``target-enter``."""
STDLIB_LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3",
    "pydoc_data", "distutils",
}  # fmt: skip


def image() -> Path:
    """The runtime's image, built first if it is not in the cache."""
    return part("runtime", _recipe(), _build) / "root.img"


def source_image(target: Path) -> None:
    """Writes the image of the checkout's ``nvmet_p2p`` and data plane."""
    tree = target.with_suffix(".tree")
    package = tree / "nvmet_p2p"
    source = Path(os.environ.get("NVMET_P2P_LAB_SOURCE") or ROOT)
    shutil.copytree(source / "nvmet_p2p", package, ignore=shutil.ignore_patterns("__pycache__.*"))
    # in the guest nothing can be compiled: the disk is for reading only
    run([sys.executable, "-m", "compileall", "-q", "-j", "1", "-s", str(tree), "-p", str(ROOT), str(package)])
    (tree / "native").mkdir()
    program = find_program()
    if program is not None:
        shutil.copy2(program, tree / "native" / PROGRAM)
    disk_image(tree, target, "lab-source")
    shutil.rmtree(tree)


def _base() -> Path:
    """The interpreter behind the virtual environment."""
    return Path(os.path.realpath(sys.executable))


def distributions() -> list[importlib.metadata.Distribution]:
    """The target's run-time dependencies, theirs too, as they are installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, found = list(project["dependencies"]), {}
    while wanted:
        requirement = Requirement(wanted.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        extras = sorted(requirement.extras) or [""]
        if name in found or not (
            requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras)
        ):
            continue
        try:
            found[name] = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            raise ImageError(f"the Python package {requirement.name} is not installed: make setup") from None
        wanted += found[name].requires or []
    return [found[name] for name in sorted(found)]


def _files(packages: Iterable[importlib.metadata.Distribution]) -> set[Path]:
    """Every file of the packages that lies in this environment, by the name that it has here (not resolved)."""
    files = {Path(os.path.normpath(str(f.locate()))) for package in packages for f in package.files or ()}
    return {path for path in files if path.is_file() and path.is_relative_to(sys.prefix)}


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """Every shared library that the programs and modules are linked with, and the loader."""
    names = sorted(map(str, programs))
    path = ":".join(filter(None, (spdk.library_path(), os.environ.get("LD_LIBRARY_PATH"))))
    environment = dict(os.environ) | ({"LD_LIBRARY_PATH": path} if path else {})
    done = subprocess.run(["ldd", *names], check=False, capture_output=True, text=True, env=environment)
    if missing := re.findall(r"(\S+) => not found", done.stdout):
        raise ImageError(f"libraries not found on this machine: {' '.join(sorted(set(missing)))}")
    return {Path(name) for name in re.findall(r"(?:=>|^)\s+(/\S+) \(0x", done.stdout, re.MULTILINE)}


def _soft_roce() -> list[Path]:
    """libibverbs' plug-in for rdma_rxe and the file that names it: the only RDMA device of a guest."""
    folder = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}/libibverbs"
    return [path for path in (*Path(folder).glob("librxe-*.so"), Path("/etc/libibverbs.d/rxe.driver")) if path.exists()]


def _recipe() -> list[str]:
    program = find_program()
    facts = [str(_base()), sys.version, sys.prefix, str(ROOT), str(program)]
    facts += [f"{d.metadata['Name']} {d.version}" for d in distributions()]
    linked = [_base(), *([program] if program else []), *(p for p in _soft_roce() if p.suffix == ".so"), *spdk.files()]
    libraries = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sorted(_libraries(linked))]
    made_by = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in (__file__, spdk.__file__)]
    return ["runtime 1", *facts, spdk.library_path(), *map(str, spdk.files()), *libraries, *made_by]


def _build(out: Path) -> None:
    root = out / "root"
    stdlib = Path(sysconfig.get_path("stdlib"))
    files = _files(distributions())
    for name in (
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "usr/sbin",
        "etc",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "lab",
        "var/lib",
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("/run")
    (root / "var/tmp").symlink_to("/tmp")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    if Path("/etc/ld.so.cache").exists():
        shutil.copy2("/etc/ld.so.cache", root / "etc/ld.so.cache")

    def leave_out(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == stdlib
        return {n for n in names if (top and n in STDLIB_LEFT_OUT) or n.startswith("config-3") or n.endswith(".a")}

    shutil.copytree(stdlib, _at(root, stdlib), ignore=leave_out, dirs_exist_ok=True)
    environment = Path(sys.prefix)
    program = find_program()
    scripts = [environment / "bin" / "nvmet-p2p", environment / "pyvenv.cfg"]
    for path in (*files, *(s for s in scripts if s.exists())):
        _copy(root, path)
    for link in (environment / "bin").glob("python*"):
        _copy(root, link)
    _copy(root, Path(sys._base_executable))  # type: ignore[attr-defined]
    _copy(root, _base())
    (_at(root, Path(sysconfig.get_path("purelib"))) / "nvmet_p2p.pth").write_text(f"{ROOT}\n")
    for path in (*_soft_roce(), *spdk.files()):
        _copy(root, path)
    (root / "etc/lab-library-path").write_text(spdk.library_path())
    linked = [p for p in root.rglob("*.so*") if p.is_file() and not p.is_symlink()]
    for library in _libraries([*linked, _base(), *spdk.files(), *([program] if program else [])]):
        _copy(root, library)
    for name in ("nvmet_p2p", "build/native"):  # source.img is mounted there
        _at(root, ROOT / name).mkdir(parents=True, exist_ok=True)
    disk_image(root, out / "root.img", "lab-runtime")
    shutil.rmtree(root)


def _at(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")


def _copy(root: Path, path: Path) -> None:
    """Copies a file to the same path below root; a link with what it leads to."""
    here = _at(root, path)
    if os.path.lexists(here) or path.is_relative_to(root):
        return
    here.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target = Path(os.readlink(path))
        here.symlink_to(target)
        _copy(root, Path(os.path.normpath(path.parent / target)))
    else:
        shutil.copy2(path, here)
