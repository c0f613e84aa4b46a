"""``nvmet-p2p status``: SPDK's answers and ``p2p_get_status`` gathered into one document, and shown as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nvmet_p2p.cli.client import RpcClient, RpcError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def collect(client: RpcClient) -> dict[str, Any]:
    """Everything that ``show`` needs, as plain JSON values.

    A subsystem that is deleted between two of the calls is left without ``controllers``.
    """
    subsystems = client.call("nvmf_get_subsystems")
    for subsystem in subsystems:
        try:
            subsystem["controllers"] = client.call("nvmf_subsystem_get_controllers", {"nqn": subsystem["nqn"]})
        except RpcError:
            subsystem["controllers"] = []
    return {
        "status": client.call("p2p_get_status"),
        "subsystems": subsystems,
        "bdevs": client.call("bdev_get_bdevs"),
        "iostat": client.call("bdev_get_iostat"),
        "stats": client.call("nvmf_get_stats"),
    }


def show(facts: dict[str, Any], console: Console | None = None) -> None:
    """Prints ``collect``'s document for people."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    console.print(_engine(facts["status"]))
    staging = facts["status"].get("staging", {})
    if staging.get("degraded") or staging.get("lost_pools"):
        console.print(_degraded(staging))
    console.print(Group(*_subsystem_tables(facts)))
    console.print(_bdevs(facts))


def _engine(status: dict[str, Any]) -> RenderableType:
    dataplane = status["dataplane"]
    line = f"nvmet-p2p {status['version']}, up {duration(status['uptime_s'])}, data plane: {dataplane['engine']}"
    if any((sent := dataplane.get("zero_copy", {})).values()):
        line += f"\nSent without a copy: {size(sent['bytes'])}; copied after all: {size(sent['copied_bytes'])}"
    if devices := status.get("rdma", {}).get("devices"):
        line += f"\nRDMA devices: {', '.join(_device(device) for device in devices)}"
    line += _spdk(status.get("spdk", {}))
    if not dataplane.get("slow"):
        return Text(line)
    note = dataplane.get("note") or "I/O is served in Python: right, but slow."
    return Panel(Text(f"{line}\n{note}"), title="SLOW ENGINE", border_style="bold yellow", expand=False)


def _spdk(spdk: dict[str, Any]) -> str:
    """Whether the data plane drives NVMe controllers itself; silent where it cannot and nobody asked it to."""
    lines = []
    if spdk.get("built"):
        lines.append(f"{spdk['version'] or 'SPDK'}: {'in use' if spdk.get('active') else 'built in, not in use'}")
    absent = spdk.get("absent_controllers", {})
    lines += [f"NVMe controller {name}: absent: {reason}" for name, reason in absent.items()]
    there = [name for name in spdk.get("controllers", ()) if name not in absent]
    if there:
        lines.append(f"NVMe controllers: {', '.join(there)}")
    return "".join(f"\n{line}" for line in lines)


def _device(device: dict[str, Any]) -> str:
    state = ", ".join(device["addresses"]) if device["present"] else "gone"
    return f"{device['name']} ({state})" if state else str(device["name"])


def _degraded(staging: dict[str, Any]) -> RenderableType:
    lines = [f"pool {name} was lost" for name in staging["lost_pools"]]
    lines += [f"{place}: host memory instead of the pool that was asked for" for place in staging["degraded"]]
    text = Text("\n".join([*lines, "`nvmet-p2p p2p doctor` says why."]))
    return Panel(text, title="STAGING DEGRADED", border_style="bold yellow", expand=False)


def _subsystem_tables(facts: dict[str, Any]) -> list[RenderableType]:
    bdevs = {bdev["name"]: bdev for bdev in facts["bdevs"]}
    parts: list[RenderableType] = []
    for subsystem in facts["subsystems"]:
        parts.append(Text(f"\n{subsystem['subtype']} subsystem {subsystem['nqn']}", style="bold"))
        table = Table()
        for column in ("what", "which", "details"):
            table.add_column(column, overflow="fold")
        for address in subsystem.get("listen_addresses", []):
            where = f"{_bracket(address['traddr'])}:{address['trsvcid']}"
            kind = f"{address['trtype']} {address['adrfam']}"
            waits = address in facts["status"].get("absent_listeners", [])
            details = Text(f"{kind}: absent, tried again every second", style="red") if waits else kind
            table.add_row("listener", where, details)
        for namespace in subsystem.get("namespaces", []):
            table.add_row("namespace", str(namespace["nsid"]), _namespace(namespace, bdevs))
        if subsystem.get("allow_any_host") and subsystem["subtype"] != "Discovery":
            table.add_row("allowed host", "any", "no allow-list")
        for host in subsystem.get("hosts", []):
            table.add_row("allowed host", host["nqn"], "")
        for controller in subsystem["controllers"]:
            details = f"controller {controller['cntlid']}, {controller['num_io_qpairs']} I/O queues"
            table.add_row("connected host", printable(controller["hostnqn"]), details)
        parts.append(table)
    return parts or [Text("no subsystem")]


def _namespace(namespace: dict[str, Any], bdevs: dict[str, Any]) -> Text:
    name = namespace.get("bdev_name") or namespace.get("name", "?")
    bdev = bdevs.get(name)
    if bdev is None:
        return Text(f"bdev {name}: absent, waiting for it", style="red")
    group = f", ANA group {namespace['anagrpid']}" if "anagrpid" in namespace else ""
    return Text(f"bdev {name}, {size(bdev['num_blocks'] * bdev['block_size'])}{group}")


def _bdevs(facts: dict[str, Any]) -> RenderableType:
    counters = {entry["name"]: entry for entry in facts["iostat"].get("bdevs", [])}
    table = Table()
    table.add_column("name", overflow="fold")
    table.add_column("kind")
    for column in ("block", "size", "reads", "read", "writes", "written", "unmaps"):
        table.add_column(column, justify="right")
    for bdev in facts["bdevs"]:
        io = counters.get(bdev["name"], {})
        table.add_row(
            bdev["name"],
            bdev["product_name"],
            str(bdev["block_size"]),
            size(bdev["num_blocks"] * bdev["block_size"]),
            str(io.get("num_read_ops", 0)),
            size(io.get("bytes_read", 0)),
            str(io.get("num_write_ops", 0)),
            size(io.get("bytes_written", 0)),
            str(io.get("num_unmap_ops", 0)),
        )
    return Group(Text("\nbdevs", style="bold"), table, Text(_queues(facts["stats"])))


def _queues(stats: dict[str, Any]) -> str:
    groups = stats.get("poll_groups", [])

    def total(key: str) -> int:
        return sum(group.get(key, 0) for group in groups)

    return (
        f"queues connected now: {total('current_admin_qpairs')} admin, {total('current_io_qpairs')} I/O; "
        f"since start: {total('admin_qpairs')} admin, {total('io_qpairs')} I/O"
    )


def size(count: int) -> str:
    """Bytes with a binary unit: exact when it divides, else one decimal."""
    value = float(count)
    unit = UNITS[0]
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """``1 d 2 h``, ``3 min 4 s``: the two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def printable(text: str) -> str:
    """What a peer chose, safe for a terminal: control characters as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _bracket(address: str) -> str:
    return f"[{address}]" if ":" in address else address
