"""``nvmet-p2p p2p staging``, ``pools``, ``set`` and ``calibrate``: where data rests, by which policy, and how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
import msgspec

from nvmet_p2p.cli.client import RpcClient

CALIBRATION_TIMEOUT_S: Final = 600.0  # many pools and drives, one after the other


def show(rpc_socket: Path, nqn: str | None, nsid: int | None, as_json: bool) -> None:
    """Prints ``p2p_get_staging``."""
    with RpcClient(rpc_socket) as client:
        _print_staging(client, _given(nqn=nqn, nsid=nsid), as_json)


def show_pools(rpc_socket: Path, as_json: bool) -> None:
    """Prints ``p2p_get_pools``."""
    from nvmet_p2p.p2p import render_text

    with RpcClient(rpc_socket) as client:
        pools = client.call("p2p_get_pools")
    click.echo(_json(pools) if as_json else render_text.pools_text(pools), nl=as_json)


def change(
    rpc_socket: Path, policy: str, strict: bool, nqn: str | None, nsid: int | None, listener: str | None
) -> None:
    """Sets a policy and prints what comes of it."""
    address = _listen_address(listener) if listener is not None else None
    if nqn is None and (nsid is not None or address is not None):
        raise click.UsageError("--nsid and --listener are of a subsystem: name it with --nqn")
    if nsid is not None and address is not None:
        raise click.UsageError("--nsid and --listener exclude each other")
    mode = "strict" if strict else "prefer"
    params = _given(policy=policy, mode=mode, nqn=nqn, nsid=nsid, listen_address=address)
    with RpcClient(rpc_socket, timeout_s=CALIBRATION_TIMEOUT_S) as client:
        client.call("p2p_set_staging", params)
        _print_staging(client, _given(nqn=nqn, nsid=nsid), as_json=False)


def calibrate(rpc_socket: Path, pool: str | None, bdev: str | None, as_json: bool) -> bool:
    """Measures, and prints the results; false if data of one of them was not verified."""
    from nvmet_p2p.p2p import render_text

    with RpcClient(rpc_socket, timeout_s=CALIBRATION_TIMEOUT_S) as client:
        results = client.call("p2p_calibrate", _given(pool=pool, bdev=bdev))
    click.echo(_json(results) if as_json else render_text.calibrations_text(results), nl=as_json)
    return all(result["verified"] for result in results)


def _print_staging(client: RpcClient, params: dict[str, Any], as_json: bool) -> None:
    from nvmet_p2p.p2p import render_text

    namespaces = client.call("p2p_get_staging", params)
    click.echo(_json(namespaces) if as_json else render_text.staging_text(namespaces), nl=as_json)


def _listen_address(text: str) -> dict[str, str]:
    traddr, colon, trsvcid = text.rpartition(":")
    if not colon or not traddr or not trsvcid.isdigit():
        raise click.BadParameter(f"{text}: ADDRESS:PORT is wanted", param_hint="--listener")
    return {"trtype": "TCP", "traddr": traddr.removeprefix("[").removesuffix("]"), "trsvcid": trsvcid}


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
