"""Builds what a lab guest boots from, once, into a cache folder.

Parts, each in its own folder of the cache, named after a hash of its recipe (so a changed recipe is a new folder):

    userland-HASH/   root.img (ext4, the whole guest userland), busybox, tools/ (kmod, run on the host), versions
    kernel-HASH/     vmlinux (uncompressed ELF: boots by PVH without decompression), modules.img, boot/, kernel.json
    boot-HASH/       initramfs.cpio: busybox, the few modules needed to mount root.img, and guest/
    qemu-HASH/       another QEMU than the host's own (on demand)
    runtime-HASH/    the target's own Python and libraries, for guests that run the target (on demand, see runtime.py)

A part is built in a temporary folder and renamed into place when it is complete; a lock file serializes builders.
Packages come from the mirror that the machine's own apt is set up with, through a private apt state inside the cache:
nothing on the host outside the cache is changed, and root is not needed.

    python -m tests.lab.image [--kernel backports|stable|ABI] [--prune]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.lab.debian import Apt, ImageError, cache_dir, disk_image, environment, missing_packages, run, unpack

HERE = Path(__file__).resolve().parent

SUITE = "trixie"
BACKPORTS = "trixie-backports"
PINNED_ABI = "7.2.12+deb13-amd64"
"""The kernel that "backports" means, while the mirror still has it; afterwards the newest of the suite."""

UNUSED_DAYS = 30
"""Parts that no guest has used for this long are removed at the next build."""

# Userland of the guest; dependencies come along. Everything is at its usual path in the guest.
USERLAND = """
    bash busybox-static coreutils findutils diffutils gawk grep sed procps psmisc file jq ncurses-base less
    libc-bin tar gzip
    kmod util-linux mount e2fsprogs dmsetup pciutils strace
    iproute2 nftables iputils-ping ethtool tcpdump
    nvme-cli fio liburing2 python3
    rdma-core ibverbs-utils ibverbs-providers rdmacm-utils perftest
    ktls-utils keyutils openssl
""".split()  # noqa: SIM905

# Kernel modules at hand in the guest, with what they depend on. Not every kernel has each of them.
MODULES = """
    virtio_blk virtio_net virtio_scsi 9p 9pnet_virtio overlay ext4 loop brd null_blk
    nvme nvme_tcp nvme_rdma nvme_fabrics nvme_loop nvmet nvmet_tcp nvmet_rdma configfs nvme_auth nvme_keyring
    rdma_rxe ib_uverbs rdma_ucm rdma_cm ib_umad tls vfio vfio_pci vfio_iommu_type1 pci_stub
    veth dummy e1000e tun bridge sch_netem sch_tbf af_packet
    nf_tables nft_compat nft_chain_nat nft_nat nft_masq nft_ct nft_reject nft_reject_inet nft_limit xt_tcpudp
    dm_mod dm_flakey dm_delay md_mod raid1 scsi_debug ublk_drv
    hmac crc32c_generic crc32c_intel libcrc32c crc32c_cryptoapi crypto_user algif_hash gcm ccm aesni_intel xts
    dh_generic ecdh_generic sha256_generic sha512_generic
""".split()  # noqa: SIM905

# Modules that the initramfs loads, before it can mount anything.
BOOT_MODULES = ("crc32c_generic", "virtio_blk", "virtio_net", "ext4", "overlay", "9pnet_virtio", "9p")

# Parts of the userland that no test needs, below usr/.
PRUNE = """
    share/doc share/man share/locale share/info share/zoneinfo share/bash-completion share/lintian share/zsh share/bug
    share/common-licenses share/i18n lib/systemd lib/x86_64-linux-gnu/gconv lib/x86_64-linux-gnu/systemd share/perl
    share/perl5 lib/x86_64-linux-gnu/perl lib/x86_64-linux-gnu/perl-base
""".split()  # noqa: SIM905

# QEMU versions other than the host's: the suites to look in. Their own loader and libraries are used.
QEMUS = {"10": ("bookworm", "bookworm-backports"), "11": (SUITE, BACKPORTS)}


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """What a guest boots from."""

    vmlinux: Path
    initramfs: Path
    root: Path
    modules: Path
    abi: str
    """The kernel's ABI name (uname -r in the guest)."""


def ensure(kernel: str = "backports") -> Image:
    """The image for `kernel`, built first if it is not in the cache.

    kernel: "backports" (the pinned kernel of trixie-backports, else the newest one there), "stable" (Debian 13's own)
    or an ABI name such as "6.12.43+deb13-amd64".
    """
    userland = part("userland", _userland_recipe(), _build_userland)
    kern = part("kernel", [*_kernel_recipe(kernel), userland.name], lambda d: _build_kernel(d, kernel, userland))
    boot = part("boot", [userland.name, kern.name, *_guest_files()], lambda d: _build_initramfs(d, userland, kern))
    abi = json.loads((kern / "kernel.json").read_text())["abi"]
    return Image(
        vmlinux=kern / "vmlinux",
        initramfs=boot / "initramfs.cpio",
        root=userland / "root.img",
        modules=kern / "modules.img",
        abi=abi,
    )


def qemu(version: str) -> Path:
    """A QEMU of another version ("10", "11") as a program to run, fetched on first use."""
    if version not in QEMUS:
        raise ImageError(f"no QEMU {version!r} known; there are: {', '.join(QEMUS)}")
    return part("qemu", ["1", version, *QEMUS[version]], lambda d: _build_qemu(d, version)) / "qemu"


# Cache


def part(kind: str, recipe: Iterable[str], build: Callable[[Path], None]) -> Path:
    """The folder of one part; build(folder) fills it where it is not there yet."""
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:16]
    final = cache_dir() / f"{kind}-{digest}"
    if _use(final):
        return final
    with _lock():
        if _use(final):  # another run built it meanwhile
            return final
        _remove_unused()
        print(f"lab: building {kind} in {final} (once)", file=sys.stderr, flush=True)
        started = time.monotonic()
        work = final.with_name(f"tmp-{kind}-{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            build(work)
            (work / "used").touch()
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        print(f"lab: {kind} built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return final


def _use(folder: Path) -> bool:
    """Whether the part is there; marks it as used now."""
    try:
        os.utime(folder / "used")
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("lab: another run builds the guest; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remove_unused(days: float = UNUSED_DAYS) -> None:
    """Remove parts not used for long and the remains of builds that died. Call with the lock held."""
    oldest = time.time() - days * 86400
    for folder in cache_dir().glob("*-*"):
        if folder.name.startswith("tmp-"):
            shutil.rmtree(folder, ignore_errors=True)
        elif re.fullmatch(r"(userland|kernel|boot|qemu|runtime)-[0-9a-f]{16}", folder.name):
            with contextlib.suppress(FileNotFoundError):
                if (folder / "used").stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)


# Userland


def _userland_recipe() -> list[str]:
    return ["userland 2", SUITE, *USERLAND, "-", *PRUNE]


def _build_userland(out: Path) -> None:
    packages = Apt("userland", [SUITE]).install(USERLAND)
    root = out / "root"
    unpack(packages, root)
    (out / "versions").write_text("".join(f"{p.name}\n" for p in packages))
    usr = root / "usr"
    _save_tools(usr, out / "tools")
    shutil.copy(usr / "bin" / "busybox", out / "busybox")
    for name in PRUNE:
        shutil.rmtree(usr / name, ignore_errors=True)
    _finish_root(root)
    disk_image(root, out / "root.img", "lab-root")
    shutil.rmtree(root)


def _save_tools(usr: Path, tools: Path) -> None:
    """kmod with its loader and libraries, to be run on a host that has no kmod."""
    tools.mkdir()
    shutil.copy(usr / "lib64" / "ld-linux-x86-64.so.2", tools / "ld.so")
    shutil.copy(usr / "bin" / "kmod", tools / "kmod")
    for pattern in ("libc.so.6", "libkmod.so.2", "libzstd.so.1", "liblzma.so.5", "libcrypto.so.3", "libz.so.1"):
        library = usr / "lib" / "x86_64-linux-gnu" / pattern
        if library.exists():
            shutil.copy(library, tools / pattern)


def _finish_root(root: Path) -> None:
    """What the scripts of the packages would have done."""
    usr = root / "usr"
    libraries = usr / "lib" / "x86_64-linux-gnu"
    for library in (libraries / "ceph").glob("*.so*"):  # fio finds it by a run path of the loader's cache only
        if not (libraries / library.name).exists():
            (libraries / library.name).symlink_to(f"ceph/{library.name}")
    for link, target in {"bin/sh": "bash", "bin/awk": "gawk", "bin/pager": "less", "bin/vi": "busybox"}.items():
        (usr / link).unlink(missing_ok=True)
        (usr / link).symlink_to(target)
    applets = run([str(usr / "bin" / "busybox"), "--list"]).split()
    for applet in applets:  # for what no package brings: ping, vi, wget, ...
        if not any(os.path.lexists(usr / d / applet) for d in ("bin", "sbin")):
            (usr / "bin" / applet).symlink_to("busybox")
    etc = root / "etc"
    for driver in (etc / "libibverbs.d").glob("*.driver"):  # each provider without its device costs a warning
        if driver.name != "rxe.driver":
            driver.unlink()
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "lab", "var/tmp", "var/log"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for path, text in {
        "passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
        "group": "root:x:0:\nnogroup:x:65534:\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n10.0.2.2 host\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        "hostname": "lab\n",
    }.items():
        (etc / path).write_text(text)
    (etc / "mtab").unlink(missing_ok=True)
    (etc / "mtab").symlink_to("/proc/mounts")


# Kernel


def _kernel_recipe(kernel: str) -> list[str]:
    return ["kernel 2", kernel, PINNED_ABI if kernel == "backports" else "", *MODULES, "-", *BOOT_MODULES]


def _choose_kernel(kernel: str) -> tuple[Apt, str]:
    """(apt state, ABI name) for what the caller asked for."""
    if kernel == "backports":
        apt = Apt("kernel-backports", [SUITE, BACKPORTS])
        if apt.has(f"linux-image-{PINNED_ABI}"):
            return apt, PINNED_ABI
        print(f"lab: the mirror has no linux-image-{PINNED_ABI}; taking the newest of {BACKPORTS}", file=sys.stderr)
        apt = Apt("kernel-newest", [BACKPORTS])
    elif kernel == "stable":
        apt = Apt("kernel-stable", [SUITE])
    else:
        apt = Apt("kernel-backports", [SUITE, BACKPORTS])
        if not apt.has(f"linux-image-{kernel}"):
            raise ImageError(f"the mirror has no package linux-image-{kernel}")
        return apt, kernel
    for name in apt.depends("linux-image-amd64"):
        if re.fullmatch(r"linux-image-\d.*", name):
            return apt, name.removeprefix("linux-image-")
    raise ImageError(f"no linux-image-amd64 for kernel {kernel!r} on the mirror")


def _build_kernel(out: Path, kernel: str, userland: Path) -> None:
    apt, abi = _choose_kernel(kernel)
    names = [f"linux-image-{abi}"]
    # newer packages keep the kernel and its modules in packages of their own
    names += [n for n in apt.depends(names[0]) if re.fullmatch(rf"linux-(binary|modules|base)-{re.escape(abi)}", n)]
    packages = apt.download(names)
    vmlinuz = b""
    modules: dict[str, bytes] = {}
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as dpkg:
            assert dpkg.stdout is not None
            with tarfile.open(fileobj=dpkg.stdout, mode="r|") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    path = member.name.removeprefix("./")
                    at = path.find(f"lib/modules/{abi}/")
                    if re.match(r"(boot|usr/lib/modules/[^/]+|usr/lib/linux[^/]*)/vmlinuz", path):
                        vmlinuz = _member(tar, member)
                    elif at >= 0:
                        modules[path[at + len(f"lib/modules/{abi}/") :]] = _member(tar, member)
    if not vmlinuz or not modules:
        raise ImageError(f"no kernel or no modules in {', '.join(p.name for p in packages)}")
    (out / "vmlinux").write_bytes(_vmlinux(vmlinuz))
    missing = _build_modules(out, abi, modules, userland)
    (out / "kernel.json").write_text(
        json.dumps(
            {"asked": kernel, "abi": abi, "packages": [p.name for p in packages], "modules absent": missing}, indent=1
        )
    )
    print(f"lab: kernel {abi}; modules that it does not have: {' '.join(missing) or 'none'}", file=sys.stderr)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = tar.extractfile(member)
    assert handle is not None
    return handle.read()


def _decompress(data: bytes) -> bytes:
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        done = subprocess.run(["zstd", "-dcq"], input=data, check=False, capture_output=True, env=environment())
        return done.stdout  # the kernel's payload is followed by its length: zstd complains about that
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(data)
    return data


def _vmlinux(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage (Linux x86 boot protocol 2.08 and later)."""
    if image[0x202:0x206] != b"HdrS":
        raise ImageError("the kernel is not a bzImage")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    elf = _decompress(image[start : start + length])
    if not elf.startswith(b"\x7fELF"):
        raise ImageError("the kernel is compressed in a way that is not known here")
    return elf


def _module_name(path: str) -> str:
    return re.sub(r"\.ko(\.xz|\.zst)?$", "", path.rsplit("/", 1)[1]).replace("-", "_")


def _build_modules(out: Path, abi: str, files: dict[str, bytes], userland: Path) -> list[str]:
    """modules.img, and boot/ with the modules of the initramfs; the names of MODULES that this kernel lacks."""
    by_name = {_module_name(path): path for path in files if re.search(r"\.ko(\.xz|\.zst)?$", path)}
    builtin = {_module_name(path) for path in files.get("modules.builtin", b"").decode().split()}
    plain: dict[str, bytes] = {}
    order: list[str] = []

    def add(name: str) -> None:
        """Take a module after those it needs."""
        if name in plain or name not in by_name:
            return
        data = plain[name] = _decompress(files[by_name[name]])
        info = re.findall(rb"(?:\0|^)(depends|softdep)=([^\0]*)", data)
        for key, value in info:
            words = value.decode().replace(",", " ").split()
            if key == b"softdep":
                words = [w for w in words if not w.endswith(":")]
            for word in words:
                add(word.replace("-", "_"))
        order.append(name)

    for name in BOOT_MODULES:
        add(name)
    boot = out / "boot"
    boot.mkdir()
    (boot / "order").write_text("".join(f"{name}\n" for name in order))
    for name in order:
        (boot / f"{name}.ko").write_bytes(plain[name])
    for name in MODULES:
        add(name)
    tree = out / "tree"
    folder = tree / "lib" / "modules" / abi
    for name in order:
        path = folder / re.sub(r"\.(xz|zst)$", "", by_name[name])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plain[name])
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order", "config"):
        if name in files:
            (folder / name).write_bytes(files[name])
    tools = userland / "tools"
    run([str(tools / "ld.so"), "--argv0", "depmod", "--library-path", str(tools), str(tools / "kmod"),
          "-b", str(tree), abi])  # fmt: skip
    disk_image(folder, out / "modules.img", "lab-modules")
    shutil.rmtree(tree)
    return [name for name in MODULES if name not in plain and name not in builtin]


# Initramfs


def _guest_files() -> list[str]:
    """The contents of guest/, as part of the recipe."""
    return ["boot 1"] + [f"{path.name}\0{path.read_text()}" for path in sorted((HERE / "guest").iterdir())]


def _build_initramfs(out: Path, userland: Path, kernel: Path) -> None:
    tree = out / "tree"
    for name in ("bin", "dev", "proc", "sys", "modules", "guest", "lower", "upper", "new"):
        (tree / name).mkdir(parents=True)
    shutil.copy(userland / "busybox", tree / "bin" / "busybox")
    (tree / "bin" / "sh").symlink_to("busybox")
    for path in (kernel / "boot").iterdir():
        shutil.copy(path, tree / "modules" / path.name)
    for path in (HERE / "guest").iterdir():
        target = tree / "init" if path.name == "init" else tree / "guest" / path.name
        shutil.copy(path, target)
        target.chmod(0o755)
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    with open(out / "initramfs.cpio", "wb") as archive:
        # not compressed: decompressing under emulation costs more than copying
        done = subprocess.run(
            ["cpio", "--null", "-o", "-H", "newc", "--quiet", "--owner=0:0", "--reproducible"],
            input="".join(f"{name}\0" for name in names).encode(), cwd=tree, stdout=archive, check=False,
            stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
    if done.returncode:
        raise ImageError(f"cpio failed: {done.stderr.decode(errors='replace')}")
    shutil.rmtree(tree)


# Another QEMU

_QEMU_WRAPPER = """\
#!/bin/sh
# The unpacked loader and libraries are used, so that the host's own are left alone.
R=$(dirname "$(readlink -f "$0")"); L=$R/usr/lib/x86_64-linux-gnu
for l in "$R/usr/lib64/ld-linux-x86-64.so.2" "$L/ld-linux-x86-64.so.2"; do [ -e "$l" ] && break; done
exec "$l" --library-path "$L:$L/pulseaudio" "$R/usr/bin/qemu-system-x86_64" \\
    -L "$R/usr/share/qemu" -L "$R/usr/share/seabios" "$@"
"""


def _build_qemu(out: Path, version: str) -> None:
    suites = QEMUS[version]
    packages = Apt(f"qemu{version}", suites).install(["qemu-system-x86"], "-t", suites[1])
    unpack(packages, out)
    for name in PRUNE:
        shutil.rmtree(out / "usr" / name, ignore_errors=True)
    (out / "qemu").write_text(_QEMU_WRAPPER)
    (out / "qemu").chmod(0o755)


def main() -> int:
    """Build (or only clean) from the command line."""
    parser = argparse.ArgumentParser(description="Build the lab's guest and print where its parts are.")
    parser.add_argument("--kernel", default="backports", help="backports (default), stable, or an ABI name")
    parser.add_argument("--qemu", choices=QEMUS, help="also fetch this QEMU")
    parser.add_argument("--prune", action="store_true", help="remove every part not used in the last day, and stop")
    options = parser.parse_args()
    if options.prune:
        with _lock():
            _remove_unused(days=1)
        return 0
    lacking = missing_packages()
    if lacking:
        print(f"lab: missing on this machine: apt-get install {' '.join(lacking)}", file=sys.stderr)
        return 1
    try:
        for name, value in dataclasses.asdict(ensure(options.kernel)).items():
            print(f"{name:10} {value}")
        if options.qemu:
            print(f"qemu       {qemu(options.qemu)}")
    except ImageError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
