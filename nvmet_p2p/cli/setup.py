"""``nvmet-p2p setup``: gives NVMe drives to vfio-pci for the data plane's SPDK, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from nvmet_p2p.cli.client import RpcClient
from nvmet_p2p.cli.options import rpc_socket_option
from nvmet_p2p.errors import NvmetP2PError

if TYPE_CHECKING:
    from nvmet_p2p.setup.machine import Machine
    from nvmet_p2p.setup.record import RecordFile

FOLDER: Final = click.Path(path_type=Path, file_okay=False, resolve_path=True)
ASK_S: Final = 5.0


@click.group("setup")
@rpc_socket_option("The daemon's Unix socket: what it serves is not taken away.")
@click.option(
    "--record-dir", type=FOLDER, default=Path("/var/lib/nvmet-p2p"), show_default=True, help="Holds setup.json."
)
@click.pass_context
def command(ctx: click.Context, rpc_socket: Path, record_dir: Path) -> None:
    """Give NVMe drives to vfio-pci, so that the data plane drives them itself, and put everything back."""
    ctx.obj = (rpc_socket, record_dir)


@command.command()
@click.argument("drives", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--hugepages", type=click.IntRange(1, 1 << 20), default=None, help="At least so many on each NUMA node.")
@click.option("--noiommu", is_flag=True, help="Do without an IOMMU: the drives can reach all memory.")
@click.pass_obj
def bind(places: tuple[Path, Path], drives: tuple[str, ...], hugepages: int | None, noiommu: bool) -> None:
    """Bind the NVMe drives at these PCI addresses to vfio-pci.

    Refused for a drive that is mounted or otherwise in use, and where something else is in its IOMMU group. A refused
    call changes nothing.
    """
    from nvmet_p2p.setup.binding import Wish
    from nvmet_p2p.setup.binding import bind as do_bind

    machine, file = _parts(places)
    wish = Wish(drives=drives, noiommu=noiommu, hugepages=hugepages or 0, served=_target(places[0])[0])
    with file.locked():
        _print(do_bind(machine, file, wish))


@command.command()
@click.argument("drives", nargs=-1, metavar="[ADDRESS...]")
@click.pass_obj
def restore(places: tuple[Path, Path], drives: tuple[str, ...]) -> None:
    """Give drives (default: all, and the huge pages) back as they were before `bind`. Twice is as good as once."""
    from nvmet_p2p.setup.binding import restore as do_restore

    machine, file = _parts(places)
    with file.locked():
        _print(do_restore(machine, file, drives))


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def status(places: tuple[Path, Path], as_json: bool) -> None:
    """Show each NVMe drive: who has it, whether it could be bound, and what the machine lacks."""
    from nvmet_p2p.setup import report

    machine, file = _parts(places)
    served, processes = _target(places[0])
    facts = report.document(machine, file.load(machine.boot_id)[0], served=served, processes=processes)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode())
    else:
        click.echo(report.text(facts))


def _parts(places: tuple[Path, Path]) -> tuple[Machine, RecordFile]:
    from nvmet_p2p.setup.machine import Machine
    from nvmet_p2p.setup.record import RecordFile

    return Machine.running(), RecordFile(places[1])


def _target(rpc_socket: Path) -> tuple[dict[str, str], list[int]]:
    """The files of a running target's bdevs, and its processes; nothing when none answers."""
    try:
        with RpcClient(rpc_socket, timeout_s=ASK_S) as client:
            bdevs: list[dict[str, Any]] = client.call("bdev_get_bdevs")
            pid = client.call("p2p_get_status")["dataplane"].get("pid", 0)
    except NvmetP2PError:
        return {}, []
    files = [(spec.get("filename"), bdev["name"]) for bdev in bdevs for spec in bdev["driver_specific"].values()]
    return {os.path.realpath(name): bdev for name, bdev in files if name}, [pid] if pid else []


def _print(lines: list[str]) -> None:
    click.echo("\n".join(lines))
