"""The model's values as JSON-RPC calls of the data plane, and its answers as values. Pure."""

from __future__ import annotations

from typing import Any, Final

from nvmet_p2p.dataplane.port import IoStat
from nvmet_p2p.target.config import QOS_LIMITS, BdevConfig, BdevFacts
from nvmet_p2p.target.effects import ControllerView, Placement

LATENCIES: Final = ("avg_read", "p99_read", "avg_write", "p99_write")
ATTACH: Final = "bdev_nvme_attach_controller"
Call = tuple[str, dict[str, Any]]


def create_bdev(config: BdevConfig) -> Call:
    """The call that opens a back end. The data plane keeps it, and shows it to the next control plane."""
    params: dict[str, Any]
    match config.kind:
        case "malloc" | "null":
            params = {
                "name": config.name,
                "block_size": config.block_size,
                "physical_block_size": config.physical_block_size,
                "num_blocks": config.num_blocks,
            }
        case "aio" | "uring":
            params = {
                "name": config.name,
                "block_size": config.block_size,
                "filename": config.filename,
                "readonly": config.readonly,
                "fallocate": config.fallocate,
                "nowait": config.nowait,
            }
        case "delay":
            params = {"name": config.name, "base_bdev_name": config.base}
            params |= {f"{name}_latency": us for name, us in zip(LATENCIES, config.latencies_us, strict=True)}
        case "cmb":
            params = {
                "name": config.name,
                "pool": config.provider,
                "block_size": config.block_size,
                "num_blocks": config.num_blocks,
            }
        case "error":
            params = {"base_name": config.base}
        case "nvme":  # made by the attachment of its controller: this is how the data plane shows it
            return ATTACH, {"name": config.controller}
    return f"bdev_{config.kind}_create", params | {"uuid": config.uuid}


def is_same_bdev(config: BdevConfig, shown: dict[str, Any]) -> bool:
    """Whether a back end that runs (an entry of bdev_get_bdevs) is the one that ``config`` asks for."""
    method, params = create_bdev(config)
    if config.kind == "nvme":
        made_from = shown.get("driver_specific", {}).get("config", {})
        return bool(made_from.get("method") == method and made_from.get("params", {}).get("name") == config.controller)
    return bool(shown.get("driver_specific", {}).get("config") == {"method": method, "params": params})


def kind_of(shown: dict[str, Any]) -> str:
    """The kind of a back end that runs."""
    method = str(shown.get("driver_specific", {}).get("config", {}).get("method", ""))
    return "nvme" if method == ATTACH else method.removeprefix("bdev_").removesuffix("_create")


def qos_of(config: BdevConfig) -> dict[str, int]:
    """The limits that a back end has; 0 is none."""
    return {name: getattr(config, name) for name in QOS_LIMITS}


def facts_of(config: BdevConfig, answer: dict[str, Any]) -> BdevFacts:
    """What the data plane found when it opened a back end."""
    return BdevFacts(
        name=config.name,
        block_size=int(answer["block_size"]),
        num_blocks=int(answer["num_blocks"]),
        readonly=bool(answer["readonly"]),
        write_cache=bool(answer["write_cache"]),
        unmap=bool(answer["unmap"]),
        write_zeroes=bool(answer["write_zeroes"]),
        optimal_io_boundary=config.optimal_io_boundary,
        physical_block_size=int(answer["physical_block_size"]),
        identity=str(answer.get("identity", "")),
    )


def set_controller(view: ControllerView, *, pools: bool = True) -> dict[str, Any]:
    """Parameters of p2p_controller_set. ``pools``: the data plane has any."""
    return {
        "key": view.key,
        "mdts_bytes": view.mdts_bytes,
        "copy_formats": view.copy_formats,
        **({"host": view.hostnqn} if pools else {}),
        "namespaces": [
            {
                "nsid": namespace.nsid,
                "bdev": namespace.bdev,
                "anagrpid": namespace.anagrpid,
                "ana_state": namespace.ana_state,
                "write_protected": namespace.write_protected,
                **_placement(namespace.placement),
            }
            for namespace in view.namespaces.values()
        ],
    }


def _placement(placement: Placement) -> dict[str, Any]:
    """The pools of a namespace's payload; what is not named is host memory."""
    named = {"read_pool": placement.read, "write_pool": placement.write, "copy_pool": placement.copy}
    given: dict[str, Any] = {key: name for key, name in named.items() if name}
    return given | {"strict": True} if given and placement.strict else given


def zero_copy_of(reactors: list[dict[str, int]]) -> tuple[int, int]:
    """Of p2p_get_reactors: bytes sent without a copy, and bytes that the kernel copied after all."""
    return (
        sum(reactor["zero_copy_bytes"] for reactor in reactors),
        sum(reactor["copied_after_all_bytes"] for reactor in reactors),
    )


def iostat_of(shown: dict[str, Any]) -> IoStat:
    """An entry of bdev_get_iostat; ticks of the data plane are nanoseconds."""
    return IoStat(
        bytes_read=shown["bytes_read"],
        num_read_ops=shown["num_read_ops"],
        bytes_written=shown["bytes_written"],
        num_write_ops=shown["num_write_ops"],
        bytes_unmapped=shown["bytes_unmapped"],
        num_unmap_ops=shown["num_unmap_ops"],
        bytes_copied=shown["bytes_copied"],
        num_copy_ops=shown["num_copy_ops"],
        read_latency_ns=shown["read_latency_ticks"],
        write_latency_ns=shown["write_latency_ticks"],
        unmap_latency_ns=shown["unmap_latency_ticks"],
        copy_latency_ns=shown["copy_latency_ticks"],
        io_error=dict(shown["io_error"]),
    )
