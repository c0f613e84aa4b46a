"""The map and the doctor's findings as plain text, from their documents (``report``, ``doctor``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

Document = Mapping[str, Any]

UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
MARKS: Final = {"same-device": "=", "bus-address": "s", "host-bridge": "h", "none": "-"}
LEGEND: Final = "= same device   s inside a PCIe switch   h through the host bridge   - refused"
REASONS_MAX: Final = 12
COLUMNS_NAMED_MAX: Final = 8


def size(count: int) -> str:
    """Bytes with a binary unit, one decimal where it does not divide."""
    value, unit = float(count), UNITS[0]
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def map_text(document: Document) -> str:
    """Tree, distances, the reasons of what is refused, and what was chosen for each namespace."""
    parts = [_machine(document), "\n".join(_tree(document))]
    if document["verdicts"]:
        parts += ["\n".join(_matrix(document)), "\n".join(_reasons(document))]
    else:
        parts.append("No device offers peer memory here: `nvmet-p2p p2p doctor` says why.")
    if document["pools"]:
        parts.append("\n".join(_pools(document["pools"])))
    if document["namespaces"]:
        parts.append("\n".join(_namespaces(document["namespaces"])))
    return "\n\n".join(part for part in parts if part) + "\n"


def doctor_text(document: Document) -> str:
    """Each finding with why and what to do, problems first, and a line that counts them."""
    lines: list[str] = []
    for finding in document["findings"]:
        word = "PROBLEM" if finding["severity"] == "problem" else "note   "
        lines += [
            f"{word} {finding['code']}: {finding['subject']}",
            f"        why: {finding['reason']}",
            f"        do:  {finding['remedy']}",
            "",
        ]
    notes = len(document["findings"]) - document["problems"]
    lines.append("No problem found." if document["ok"] else f"{_count(document['problems'], 'problem')}.")
    if notes:
        lines[-1] = f"{lines[-1][:-1]}, {_count(notes, 'note')}."
    return "\n".join(lines) + "\n"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _machine(document: Document) -> str:
    cpu, kernel = document["cpu"], document["kernel"]
    trust = (
        "passes peer-to-peer between root ports" if cpu["passes_peer_to_peer"] else "trusts listed host bridges only"
    )
    facts = [f"kernel {kernel['release'] or 'unknown'}"]
    if kernel["p2pdma"] is False:
        facts.append("built without CONFIG_PCI_P2PDMA")
    if kernel["userspace_p2p"] is False:
        facts.append("too old for peer memory in programs")
    return f"{', '.join(facts)}\nCPU {cpu['model_name'] or cpu['vendor'] or 'unknown'}: {trust}"


def _tree(document: Document) -> Iterator[str]:
    for host in document["tree"]:
        yield host_label(host)
        yield from _below(host["children"], "")
    if not document["tree"]:
        yield "no drive and no NIC on PCI"


def host_label(host: Document) -> str:
    """A host bridge in words."""
    name = f"{host['name']} host bridge"
    if host["first"] is None:
        return f"{name}, unknown to the kernel's list"
    name += f" {host['vendor']:04x}:{host['device']:04x}"
    if host["listed"]:
        only = ", within itself only" if host["same_host_bridge_only"] else ""
        return f"{name}, listed by the kernel ({host['listed']}){only}"
    return f"{name}, not listed by the kernel" + (", trusted for its CPU" if host["trusted"] else "")


def _below(children: Sequence[Document], indent: str) -> Iterator[str]:
    for at, node in enumerate(children):
        last = at == len(children) - 1
        yield f"{indent}{'└─' if last else '├─'} {_label(node)}"
        yield from _below(node["children"], indent + ("   " if last else "│  "))


def _label(node: Document) -> str:
    words = [node["bdf"], *([f"{', '.join(node['names'])}"] if node["names"] else [])]
    if node["kind"] not in ("drive", "nic"):
        words.append(node["kind"])
    elif node["driver"] not in ("nvme", None) or node["driver"] is None:
        words.append(f"{node['kind']}, driver {node['driver'] or 'none'}")
    if node["provider"]:
        words.append(_memory(node["provider"]))
    if node["redirects"]:
        words.append("[ACS redirects to the root complex]")
    if not node["acs_known"]:
        words.append("[ACS unknown]")
    if node["kind"] in ("drive", "nic"):
        if node["numa_node"] is not None:
            words.append(f"node {node['numa_node']}")
        if node["iommu_group"] is not None:
            words.append(f"IOMMU group {node['iommu_group']}{' (translated)' if node['translated'] else ''}")
    return "  ".join(words)


def _memory(provider: Document) -> str:
    if provider["usable"]:
        return f"* CMB {size(provider['size'])}, {size(provider['available'])} free"
    return f"(CMB {size(provider['size'])}: {provider['code']})"


def names_of(document: Document) -> dict[str, str]:
    """Address: the short name that tables give a client ("nvme0", or the address)."""
    return {client["bdf"]: (client["names"] or [client["bdf"]])[0] for client in document["clients"]}


def columns_of(document: Document) -> list[str]:
    """The providers of the table of distances, in its order."""
    return list(dict.fromkeys(verdict["provider"] for verdict in document["verdicts"]))


def _matrix(document: Document) -> Iterator[str]:
    """The table of distances. With many providers the columns have numbers, which the lines explain."""
    names, columns = names_of(document), columns_of(document)
    cells = {(verdict["provider"], verdict["client"]): verdict for verdict in document["verdicts"]}
    heads = [names.get(bdf, bdf) for bdf in columns]
    labels = {client["bdf"]: _row_name(client) for client in document["clients"]}
    if len(columns) > COLUMNS_NAMED_MAX:
        heads = [f"#{at}" for at in range(1, len(columns) + 1)]
        labels |= {bdf: f"{head:<4}{labels[bdf]}" for bdf, head in zip(columns, heads, strict=True) if bdf in labels}
    widths = [max(len(head), 3) for head in heads]
    left = max(map(len, labels.values()))
    yield "Distance of each client (line) from each provider (column), as the kernel counts it:"
    yield " ".join([" " * left, *(head.rjust(width) for head, width in zip(heads, widths, strict=True))])
    for bdf, label in labels.items():
        row = [_cell(cells[column, bdf]).rjust(width) for column, width in zip(columns, widths, strict=True)]
        yield " ".join([label.ljust(left), *row])
    yield LEGEND


def _row_name(client: Document) -> str:
    return "  ".join([client["bdf"], *client["names"][:1]])


def _cell(verdict: Document) -> str:
    mark = MARKS[verdict["map_type"]] + ("" if verdict["certain"] else "?")
    return f"{verdict['cost']}{mark}" if verdict["ok"] else mark


def _reasons(document: Document) -> Iterator[str]:
    """Each refusal once, for the first pair that has it."""
    groups: dict[tuple[str, str], list[Document]] = {}
    for verdict in document["verdicts"]:
        if not verdict["ok"]:
            groups.setdefault((verdict["code"], verdict["remedy"]), []).append(verdict)
    for at, found in enumerate(groups.values()):
        if at == REASONS_MAX:
            yield f"... and {len(groups) - at} more kinds of refusal: see --json"
            return
        first = found[0]
        more = f" (and {_count(len(found) - 1, 'more pair')})" if len(found) > 1 else ""
        yield f"{first['client']} from {first['provider']}{more} is refused: {first['reason']}"
        yield f"    do: {first['remedy']}"


def _pools(pools: Sequence[Document]) -> Iterator[str]:
    yield "Pools of the data plane:"
    for pool in pools:
        kind = "EMULATED, host memory" if pool["kind"] == "emulated" else "peer memory"
        state = f"LOST: {pool['why']}" if pool["lost"] else f"{size(pool['free'])} of {size(pool['bytes'])} free"
        yield f"  {pool['name']}  {kind}, {state}, used by {_count(pool['users'], 'view')}"
        for bdev, figures in sorted(pool["calibrations"].items()):
            yield f"    {bdev}: {calibration(figures)}"


def pools_text(pools: Sequence[Document]) -> str:
    """The answer of ``p2p_get_pools``."""
    if not pools:
        return "no pool: `nvmet-p2p p2p doctor` says why\n"
    lines = list(_pools(pools))
    lines += [f"  {pool['name']} could not be had: {pool['failure']}" for pool in pools if pool["failure"]]
    return "\n".join(lines) + "\n"


def calibration(figures: Document) -> str:
    """A calibration's figures in words."""
    if not figures["verified"]:
        return f"NOT VERIFIED: {figures['reason'] or 'data did not agree'}"
    pairs = (
        ("CPU writes", figures["cpu_write_mib_s"], figures["host_write_mib_s"]),
        ("CPU reads", figures["cpu_read_mib_s"], figures["host_read_mib_s"]),
        ("drive writes", figures["drive_to_pool_mib_s"], figures["drive_to_host_mib_s"]),
    )
    words = [f"{what} {pool:.0f} MiB/s (host memory {host:.0f})" for what, pool, host in pairs if pool or host]
    return ", ".join(["verified", *words])


def _namespaces(namespaces: Sequence[Document]) -> Iterator[str]:
    yield "Namespaces:"
    for entry in namespaces:
        where = f" on {entry['listener']}" if entry["listener"] else ""
        yield f"  {entry['nqn']} namespace {entry['nsid']} ({entry['bdev']}){where}: {choice_line(entry)}"
        yield from _why(entry["choice"]["reason"], entry["drives_refused"], entry["policy"] == "off")


def staging_text(namespaces: Sequence[Document]) -> str:
    """The answer of ``p2p_get_staging``: for each namespace what each listener chose, and where the bytes went."""
    lines: list[str] = []
    for namespace in namespaces:
        lines.append(f"{namespace['nqn']} namespace {namespace['nsid']} ({namespace['bdev']})")
        for path in namespace["paths"]:
            lines += _path(path)
        lines += [f"  so far: {words}" for words in _so_far(namespace)]
    return "\n".join(lines or ["no namespace"]) + "\n"


def _path(path: Document) -> Iterator[str]:
    address = path["listen_address"]
    where = "without a listener"
    if address is not None:
        host = f"[{address['traddr']}]" if ":" in address["traddr"] else address["traddr"]
        where = f"{host}:{address['trsvcid']}"
    policy = (
        path["policy"] if path["policy"] == "off" else f"{path['policy']},{'strict' if path['strict'] else 'prefer'}"
    )
    line = choice_line({"choice": path, "policy": policy, "policy_of": path["policy_of"]})
    yield f"  {where}: {'DEGRADED, ' if path['state'] == 'degraded' else ''}{line}"
    yield from _why(path["reason"], path["drives_refused"], path["policy"] == "off")


def _so_far(namespace: Document) -> Iterator[str]:
    for pool in namespace["pools"]:
        moved = [f"{size(pool[f'{what}_bytes'])} {word}" for what, word in _MOVED if pool[f"{what}_bytes"]]
        if moved:
            name = "host memory" if pool["kind"] == "host" else pool["pool"]
            kind = " (EMULATED: host memory)" if pool["kind"] == "emulated" else ""
            yield f"{', '.join(moved)} by {name}{kind}"
    routes = [f"{size(count)} by {route}" for route, count in namespace["copy_routes"].items() if count]
    if routes:
        yield f"Copy moved {', '.join(routes)}"
    for key, words in (("fallbacks", "fell back to host memory"), ("interrupted", "had to be sent again")):
        if namespace[key]:
            yield f"{_count(namespace[key], 'command')} {words}"


def calibrations_text(results: Sequence[Document]) -> str:
    """The answer of ``p2p_calibrate``."""
    lines = [f"{result['pool']} with {result['bdev']}: {calibration(result)}" for result in results]
    return "\n".join(lines or ["no pool is in use"]) + "\n"


def _why(reason: str, refused: Document | None, off: bool) -> Iterator[str]:
    yield f"    {reason}"
    if refused and not off and refused["reason"] not in reason:
        yield f"    {refused['reason']}"


def choice_line(entry: Document) -> str:
    """Where a namespace's reads, writes and copies rest, and by which policy."""
    choice = entry["choice"]
    rests = [f"{what} {choice[key] or 'host memory'}" for what, key in _DIRECTIONS]
    if len({choice[key] for _, key in _DIRECTIONS}) == 1:
        rests = [choice["read"] or "host memory"]
    runner_up = f", next {choice['runner_up']}" if choice["runner_up"] else ""
    return f"{', '.join(rests)} (policy {entry['policy']} of {entry['policy_of']}{runner_up})"


_MOVED: Final = (("read", "read"), ("write", "written"), ("copy", "copied"))
_DIRECTIONS: Final = (("reads", "read"), ("writes", "write"), ("copies", "copy"))
