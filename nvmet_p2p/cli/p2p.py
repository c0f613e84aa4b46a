"""``nvmet-p2p p2p``: ``map`` and ``doctor`` show the daemon's view of peer-to-peer, or this machine's own without one;
``staging``, ``set`` and ``calibrate`` are about where data rests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from nvmet_p2p.cli.client import RpcClient, RpcConnectionError
from nvmet_p2p.cli.options import rpc_socket_option
from nvmet_p2p.errors import NvmetP2PError

if TYPE_CHECKING:
    from nvmet_p2p.p2p.topology import Topology

EXIT_ERROR: Final = 2  # beside the doctor's 0 and 1
FOLDER: Final = click.Path(path_type=Path, exists=True, file_okay=False)


class Failure(click.ClickException):
    """Neither "fine" nor "findings": exit code 2, so that a script can tell."""

    exit_code = EXIT_ERROR


def _source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Where the document comes from: the daemon, or a sysfs tree."""
    for option in (
        click.option("--proc", type=FOLDER, default=Path("/proc"), help="With --sysfs: its /proc.", show_default=True),
        click.option("--sysfs", type=FOLDER, help="Ask no daemon; read this tree (/sys, or one recorded elsewhere)."),
    ):
        command = option(command)
    return rpc_socket_option()(command)


@click.group("p2p")
def command() -> None:
    """Peer-to-peer: which drive's memory (CMB) other devices reach, and what stands in the way."""


@command.command("map")
@_source_options
@click.option("--json", "as_json", is_flag=True, help="The document as JSON.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), help="Draw it into this file.")
def show_map(rpc_socket: Path, sysfs: Path | None, proc: Path, as_json: bool, svg: Path | None) -> None:
    """Show the PCI tree, who offers memory, how far each client is from it, and what was chosen."""
    if as_json and svg is not None:
        raise click.UsageError("--json and --svg exclude each other")
    from nvmet_p2p.p2p import render_svg, render_text, report

    document = _document("p2p_get_map", report.map_document, rpc_socket, sysfs, proc)
    if svg is not None:
        _write(svg, render_svg.map_svg(document))
    else:
        click.echo(_json(document) if as_json else render_text.map_text(document), nl=as_json)


@command.command("doctor")
@_source_options
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@click.pass_context
def show_findings(ctx: click.Context, rpc_socket: Path, sysfs: Path | None, proc: Path, as_json: bool) -> None:
    """Say each reason why peer-to-peer is not used here, and what to do.

    Exit code: 0 no problem, 1 problems, 2 it could not be found out.
    """
    from nvmet_p2p.p2p import doctor, render_text

    document = _document("p2p_doctor", doctor.doctor_document, rpc_socket, sysfs, proc)
    click.echo(_json(document) if as_json else render_text.doctor_text(document), nl=as_json)
    ctx.exit(doctor.exit_code(document))


@command.command("staging")
@rpc_socket_option()
@click.option("--nqn", help="One subsystem.")
@click.option("--nsid", type=int, help="One namespace of it.")
@click.option("--json", "as_json", is_flag=True, help="The daemon's answer as JSON.")
def show_staging(rpc_socket: Path, nqn: str | None, nsid: int | None, as_json: bool) -> None:
    """Show where each namespace's data rests, by which policy and why, and the bytes so far."""
    from nvmet_p2p.cli import p2p_staging

    p2p_staging.show(rpc_socket, nqn, nsid, as_json)


@command.command("pools")
@rpc_socket_option()
@click.option("--json", "as_json", is_flag=True, help="The daemon's answer as JSON.")
def show_pools(rpc_socket: Path, as_json: bool) -> None:
    """Show the pools that data is staged in: how large, how full, how fast, and those that were lost."""
    from nvmet_p2p.cli import p2p_staging

    p2p_staging.show_pools(rpc_socket, as_json)


@command.command("set")
@rpc_socket_option()
@click.option("--strict", is_flag=True, help="Never host memory instead; refused if that cannot be kept.")
@click.option("--nqn", help="For this subsystem [default: for the target]")
@click.option("--nsid", type=int, help="For this namespace of it.")
@click.option("--listener", metavar="ADDRESS:PORT", help="For this listener of it.")
@click.argument("policy")
def set_policy(
    rpc_socket: Path, strict: bool, nqn: str | None, nsid: int | None, listener: str | None, policy: str
) -> None:
    """Set POLICY: off, auto, a provider's PCI address, an emulated pool's name, or inherit.

    The narrowest one that is set counts: namespace, listener, subsystem, target.
    """
    from nvmet_p2p.cli import p2p_staging

    p2p_staging.change(rpc_socket, policy, strict, nqn, nsid, listener)


@command.command("calibrate")
@rpc_socket_option()
@click.option("--pool", help="One pool [default: all in use]")
@click.option("--bdev", help="One bdev [default: all that use the pools]")
@click.option("--json", "as_json", is_flag=True, help="The daemon's answer as JSON.")
@click.pass_context
def calibrate(ctx: click.Context, rpc_socket: Path, pool: str | None, bdev: str | None, as_json: bool) -> None:
    """Measure pools again and compare data in both directions. What is on the drives is left as it is.

    Exit code: 0 all data came back as written, 1 some did not, 2 it could not be found out.
    """
    from nvmet_p2p.cli import p2p_staging

    try:
        verified = p2p_staging.calibrate(rpc_socket, pool, bdev, as_json)
    except NvmetP2PError as error:
        raise Failure(str(error)) from error
    ctx.exit(0 if verified else 1)


def _document(
    method: str, local: Callable[[Topology], dict[str, Any]], rpc_socket: Path, sysfs: Path | None, proc: Path
) -> Mapping[str, Any]:
    try:
        if sysfs is None:
            with RpcClient(rpc_socket) as client:
                answer: dict[str, Any] = client.call(method)
            return answer
    except RpcConnectionError as error:
        click.echo(f"No daemon answers ({error}).\nThis is the machine alone, without pools and namespaces.", err=True)
    except NvmetP2PError as error:
        raise Failure(str(error)) from error
    from nvmet_p2p.p2p.sysfs import Proc, Sysfs
    from nvmet_p2p.p2p.topology import Topology

    root = sysfs or Path("/sys")
    if not (root / "bus").is_dir():
        raise Failure(f"{root} is not a sysfs tree: it has no folder bus")
    return local(Topology.read(Sysfs(root), proc=Proc.read(proc)))


def _write(path: Path, text: str) -> None:
    try:
        with click.open_file(str(path), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error


def _json(document: Mapping[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
