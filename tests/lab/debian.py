"""Debian's packages for the guest: fetched with the machine's own apt, unpacked, made into images; no root needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

# Programs of the host, with the Debian package that brings each.
HOST_PROGRAMS = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "cpio": "cpio",
    "zstd": "zstd",
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
}


class ImageError(Exception):
    """The guest cannot be built; the message says why."""


def cache_dir() -> Path:
    """The cache folder: NVMET_P2P_LAB_CACHE, else nvmet-p2p-lab below the user's cache folder."""
    named = os.environ.get("NVMET_P2P_LAB_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "nvmet-p2p-lab"


def host_path() -> str:
    """PATH with the folders for administration, which a user's own PATH may lack."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def missing_packages() -> list[str]:
    """The Debian packages that this machine lacks for the lab, empty when it can run."""
    lacking = {package for program, package in HOST_PROGRAMS.items() if shutil.which(program, path=host_path()) is None}
    return sorted(lacking)


def mirror() -> tuple[str, str]:
    """(URI, keyring) of the Debian archive that this machine's own apt uses; NVMET_P2P_LAB_MIRROR overrides the URI."""
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    named = os.environ.get("NVMET_P2P_LAB_MIRROR")
    if named:
        return named, keyring
    names = {"bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"}
    folder = Path("/etc/apt/sources.list.d")
    for path in sorted(folder.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            field = {
                k.lower(): v.split()
                for k, v in re.findall(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
            }
            if names & set(field.get("suites", [])) and "main" in field.get("components", []) and field.get("uris"):
                return field["uris"][0], keyring
    for path in [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list"))]:
        if not path.exists():
            continue
        for line in path.read_text().splitlines():
            words = re.sub(r"\[.*?\]", "", line.split("#")[0]).split()
            if len(words) > 3 and words[0] == "deb" and words[2] in names and "main" in words[3:]:
                return words[1], keyring
    raise ImageError("no Debian archive in this machine's apt sources: name one in NVMET_P2P_LAB_MIRROR")


class Apt:
    """apt with a private state: its own sources, lists and archive, and no installed packages, so that every
    dependency is fetched too."""

    def __init__(self, name: str, suites: Iterable[str]) -> None:
        self.folder = cache_dir() / "apt" / name
        for sub in ("sources", "preferences", "lists/partial", "cache/archives/partial"):
            (self.folder / sub).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_text("")
        uri, keyring = mirror()
        (self.folder / "sources" / "lab.sources").write_text(
            f"Types: deb\nURIs: {uri}\nSuites: {' '.join(suites)}\nComponents: main\nSigned-By: {keyring}\n"
        )
        d = self.folder
        options = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": d / "sources",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": d / "preferences",
            "Dir::State": d,
            "Dir::State::Lists": d / "lists",
            "Dir::State::status": d / "status",
            "Dir::Cache": d / "cache",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "APT::Architecture": "amd64",
            "Acquire::Retries": "3",
            "Acquire::Languages": "none",
        }
        self.options = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        run(["apt-get", *self.options, "-qq", "update"])

    def install(self, packages: Iterable[str], *options: str) -> list[Path]:
        """Fetch packages with their dependencies (nothing is installed); the package files."""
        command = ["apt-get", *self.options, "-qq", "-y", *options, "install", *packages]
        run([*command, "--download-only"])
        plan = re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", run([*command, "--simulate"]), re.MULTILINE)
        names = [f"{name}_{version.replace(':', '%3a')}_{arch}.deb" for name, version, arch in plan]
        archives = self.folder / "cache" / "archives"
        for stale in {path.name for path in archives.glob("*.deb")} - set(names):
            (archives / stale).unlink()
        return [archives / name for name in names]

    def download(self, packages: Iterable[str]) -> list[Path]:
        """Fetch exactly these packages; the package files."""
        folder = self.folder / "downloads"
        folder.mkdir(exist_ok=True)
        run(["apt-get", *self.options, "-qq", "download", *packages], cwd=folder)
        newest = [max(folder.glob(f"{name}_*.deb"), key=lambda p: p.stat().st_mtime) for name in packages]
        for other in set(folder.glob("*.deb")) - set(newest):
            other.unlink()
        return newest

    def depends(self, package: str) -> list[str]:
        """The names a package depends on, empty if the mirror does not have it."""
        done = subprocess.run(
            ["apt-cache", *self.options, "depends", "--no-recommends", "--no-suggests", package],
            check=False, capture_output=True, text=True, env=environment(),
        )  # fmt: skip
        return re.findall(r"Depends: (\S+)", done.stdout)

    def has(self, package: str) -> bool:
        """Whether the mirror has the package."""
        done = subprocess.run(
            ["apt-cache", *self.options, "show", package],
            check=False,
            capture_output=True,
            text=True,
            env=environment(),
        )
        return done.returncode == 0 and "Filename:" in done.stdout


def environment() -> dict[str, str]:
    return os.environ | {"PATH": host_path(), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def run(command: list[str], cwd: Path | None = None) -> str:
    """Run a program of the host; its standard output."""
    try:
        done = subprocess.run(command, cwd=cwd, env=environment(), check=False, capture_output=True, text=True)
    except FileNotFoundError:
        package = HOST_PROGRAMS.get(command[0], command[0])
        raise ImageError(f"{command[0]} is not installed: apt-get install {package}") from None
    if done.returncode:
        raise ImageError(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return done.stdout


def unpack(packages: Iterable[Path], root: Path) -> None:
    """Unpack packages into a root with a merged /usr, without running any package script."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as dpkg:
            _run_from(dpkg, ["tar", "-x", "-C", str(root), "--keep-directory-symlink", "--no-same-owner"])


def _run_from(source: subprocess.Popen[bytes], command: list[str]) -> None:
    done = subprocess.run(command, stdin=source.stdout, env=environment(), check=False, capture_output=True, text=True)
    if source.stdout is not None:
        source.stdout.close()
    if done.returncode or source.wait():
        raise ImageError(f"{command[0]} failed ({done.returncode}, {source.returncode}): {done.stderr.strip()[-2000:]}")


def disk_image(folder: Path, image: Path, label: str) -> None:
    """An ext4 image of a folder, for reading only: no journal, no spare room to speak of."""
    size = inodes = 0
    for parent, folders, files in os.walk(folder):
        inodes += len(folders) + len(files)
        size += 4096 * len(folders)
        size += sum((os.lstat(os.path.join(parent, f)).st_size + 4095) // 4096 * 4096 for f in files)
    megabytes = (size + inodes * 256) * 105 // 100 // 1048576 + 8
    run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum,^resize_inode", "-m", "0", "-b", "4096",
          "-L", label, "-N", str(inodes + 200), "-E", "root_owner=0:0",
          "-d", str(folder), str(image), f"{megabytes}M"])  # fmt: skip
