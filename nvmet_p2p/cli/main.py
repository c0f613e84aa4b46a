"""The commands of ``nvmet-p2p``. All but ``serve``, ``bench`` and ``setup`` are JSON-RPC clients of a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from nvmet_p2p import __version__, config
from nvmet_p2p.cli import bench, p2p, setup
from nvmet_p2p.cli.client import RpcClient
from nvmet_p2p.cli.options import ABSOLUTE, SOCKET_DEFAULT, rpc_socket_option
from nvmet_p2p.errors import ConfigError, NvmetP2PError

client_option = rpc_socket_option(f"The daemon's Unix socket. [default: {SOCKET_DEFAULT}]")


class Group(click.Group):
    """Turns the package's own exceptions into one line on stderr; anything else is a bug and shows its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise click.UsageError(str(error)) from error
        except NvmetP2PError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="nvmet-p2p")
def main() -> None:
    """An NVMe over Fabrics target. `serve` runs it; the other commands talk to a running one."""


@main.command()
@click.option("--config", "config_file", type=ABSOLUTE, help="TOML file; an option wins over it.")
@click.option("--rpc-socket", type=ABSOLUTE, help=f"Unix socket of the admin API [default: {SOCKET_DEFAULT}]")
@click.option(
    "--state-dir", type=ABSOLUTE, help="Where the configuration is kept [default: /var/lib/nvmet-p2p as root]"
)
@click.option("--log-level", help="debug, info, warning or error [default: info]")
@click.option("--log-format", help="console or json [default: console]")
@click.option("--dataplane", help="Who serves the I/O queues: native, inprocess, external or auto [default: auto]")
@click.option("--dataplane-socket", type=ABSOLUTE, help="Capsule channel of an external data plane.")
@click.option("-m", "--cpumask", help="CPUs of the native data plane's reactors: 0x3, [0,2-3] [default: one, anywhere]")
@click.option("--spin-us", type=int, help="Microseconds that a reactor polls after work [default: 20]")
@click.option("--pool-mib", type=int, help="Staging memory of the native data plane [default: 64]")
@click.option("--zero-copy-send", help="Large reads without a copy in the kernel: auto, off, always [default: auto]")
@click.option("--zero-copy-min-kib", type=int, help="Which reads are large for that [default: 16]")
@click.option("--staging", help="Where data rests by default: off, auto or a provider's PCI address [default: auto]")
@click.option("--cmb-mib", type=int, help="Most that is taken of a provider's memory; 0: all of it [default: 0]")
@click.option("--sysfs-root", type=ABSOLUTE, hidden=True)
@click.option("--metrics-listen", metavar="HOST:PORT", help="Serve Prometheus metrics here [default: off]")
@click.option("--connect-timeout-s", type=float, help="Time a peer has for ICReq and Connect [default: 10]")
@click.option("--unconnected-peers-max", type=int, help="Sockets without a Connect kept at once [default: 4096]")
@click.option(
    "--tcp-congestion", help="Congestion control of the connections: a name, system or auto [default: auto: not BBR]"
)
@click.option("--listen-backlog", type=int, help="listen(2) backlog of each listener [default: 1024]")
def serve(config_file: Path | None, **overrides: Any) -> None:
    """Run the target in the foreground, until SIGTERM or SIGINT."""
    settings = config.load(config_file, {key: _plain(value) for key, value in overrides.items()})
    from nvmet_p2p import daemon

    daemon.run(settings)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@main.command()
@client_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of tables.")
def status(rpc_socket: Path, as_json: bool) -> None:
    """Show what the target serves, to whom, and how much."""
    from nvmet_p2p.cli import status as view

    with RpcClient(rpc_socket) as client:
        facts = view.collect(client)
    if as_json:
        _print_json(facts)
    else:
        view.show(facts)


@main.command()
@client_option
@click.option("--timeout", "timeout_s", type=float, default=60.0, show_default=True, help="Seconds to wait.")
@click.argument("method")
@click.argument("params_json", required=False)
def rpc(rpc_socket: Path, timeout_s: float, method: str, params_json: str | None) -> None:
    """Call METHOD with PARAMS_JSON (an object) and print the result."""
    params = None
    if params_json is not None:
        try:
            params = msgspec.json.decode(params_json)
        except msgspec.DecodeError as error:
            raise click.BadParameter(f"not JSON: {error}", param_hint="PARAMS_JSON") from error
    with RpcClient(rpc_socket, timeout_s=timeout_s) as client:
        _print_json(client.call(method, params))


@main.command()
@client_option
def openrpc(rpc_socket: Path) -> None:
    """Print the OpenRPC document of the running daemon's admin API."""
    with RpcClient(rpc_socket) as client:
        _print_json(client.call("rpc.discover"))


@main.command()
@client_option
@click.option("--listen", help="Address to listen on [default: the one of the default route, and 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), default=4420, show_default=True)
@click.option("--discovery-port", type=click.IntRange(1, 65535), default=8009, show_default=True)
@click.option("--file", type=ABSOLUTE, default=Path("demo.img"), show_default=True, help="Sparse file to serve.")
@click.option("--size-mib", type=click.IntRange(1, 1 << 24), default=1024, show_default=True)
@click.option("--serve", "state_dir", type=ABSOLUTE, help="Also run a daemon, with this state directory.")
def demo(
    rpc_socket: Path,
    listen: str | None,
    port: int,
    discovery_port: int,
    file: Path,
    size_mib: int,
    state_dir: Path | None,
) -> None:
    """Serve a sparse file as a namespace that any host may connect to, and print how to connect.

    What exists already is left as it is, so it can be called again.
    """
    from nvmet_p2p.cli import demo as demonstration

    plan = demonstration.Plan(
        file=file,
        size_bytes=size_mib << 20,
        addresses=demonstration.addresses(listen),
        port=str(port),
        discovery_port=str(discovery_port),
    )
    if state_dir is None:
        with RpcClient(rpc_socket) as client:
            demonstration.present(client, plan)
    else:
        demonstration.serve_and_present(rpc_socket, state_dir, plan)


main.add_command(bench.command)
main.add_command(p2p.command)
main.add_command(setup.command)


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
