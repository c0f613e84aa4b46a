"""SPDK as this machine has it, for the guests' runtime disk (runtime.py), and what a test must know to run with it.

Found where NVMET_P2P_SPDK says (a folder with lib/ and bin/, as SPDK's build/ and an installation have them), else by
pkg-config. Without SPDK everything here is empty, and tests that need it are skipped.
"""

from __future__ import annotations

import functools
import os
import re
import ssl
import subprocess
import sysconfig
from pathlib import Path

from nvmet_p2p.dataplane.native.process import find_program

PROGRAMS = ("nvmf_tgt", "spdk_nvme_identify", "spdk_nvme_perf")
PLUGINS = ("librte_bus_pci.so", "librte_bus_vdev.so", "librte_mempool_ring.so")
"""The plug-ins of DPDK without which its environment does not come up; there are a hundred for network cards."""


@functools.cache
def folders() -> tuple[Path, ...]:
    """Where SPDK's libraries and those that only it brings are; empty without SPDK."""
    if named := os.environ.get("NVMET_P2P_SPDK"):
        return (Path(named).resolve() / "lib", *_of_pkg_config(str(Path(named).resolve() / "lib/pkgconfig")))
    return _of_pkg_config(None)


def _of_pkg_config(path: str | None) -> tuple[Path, ...]:
    environment = dict(os.environ) | ({"PKG_CONFIG_PATH": path} if path else {})
    packages = ("spdk_nvme", "spdk_env_dpdk", "spdk_syslibs")  # --static: older releases have all of the last private
    words = ["pkg-config", "--static", "--keep-system-libs", "--libs-only-L", *packages]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        return ()
    found = dict.fromkeys(Path(word.removeprefix("-L")) for word in done.stdout.split()) if done.returncode == 0 else {}
    return tuple(folder.resolve() for folder in found if folder.is_dir())


def program(name: str) -> Path | None:
    """One of SPDK's own programs, beside its libraries."""
    paths = (folder.parent / "bin" / name for folder in folders())
    return next((path for path in paths if path.is_file() and os.access(path, os.X_OK)), None)


def library_path() -> str:
    """LD_LIBRARY_PATH, here and in the guest: the folders that the loader does not know."""
    known = (Path("/lib"), Path("/usr/lib"))
    return ":".join(str(f) for f in folders() if not any(f.is_relative_to(k) for k in known))


@functools.cache
def linked(dataplane: Path | None = None) -> bool:
    """Whether the data plane was built with SPDK."""
    dataplane = dataplane or find_program()
    if dataplane is None:
        return False
    done = subprocess.run(["readelf", "-d", str(dataplane)], check=False, capture_output=True, text=True)
    return "libspdk_nvme" in done.stdout or bool(re.search(r"libspdk\.so", done.stdout))


def files() -> list[Path]:
    """What SPDK and DPDK need in the guest besides the libraries that ldd names: programs and plug-ins, links too."""
    if not folders():
        return []
    found = [path for name in PROGRAMS if (path := program(name)) is not None]
    multiarch = Path("/usr/lib") / str(sysconfig.get_config_var("MULTIARCH"))
    for plugin in PLUGINS:
        found += sorted(multiarch.glob(f"dpdk/pmds-*/{plugin}*"))
    # SPDK's environment refuses to start where OpenSSL has no configuration
    configuration = Path(ssl.get_default_verify_paths().openssl_cafile).parent / "openssl.cnf"
    return [*found, *([configuration] if configuration.exists() else [])]
