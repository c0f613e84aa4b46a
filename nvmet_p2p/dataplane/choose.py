"""Which data plane the settings ask for, and whether it can be had."""

from __future__ import annotations

import errno
from pathlib import Path

import structlog

from nvmet_p2p.config import Settings
from nvmet_p2p.dataplane.inprocess.engine import InProcessDataPlane
from nvmet_p2p.dataplane.native.helper import LaunchOptions
from nvmet_p2p.dataplane.native.plane import NativeDataPlane
from nvmet_p2p.dataplane.native.process import ENVIRONMENT, PROGRAM, find_program
from nvmet_p2p.dataplane.port import DataPlane
from nvmet_p2p.errors import OperatorError

log = structlog.get_logger()


async def choose_dataplane(settings: Settings) -> DataPlane:
    """The data plane, launched but not started. Raises ``OperatorError`` when the one that was asked for cannot be had.

    With ``auto`` that is the native one, or the in-process one, loudly, where there is no native one.
    """
    if settings.dataplane == "inprocess":
        return InProcessDataPlane()
    try:
        plane = _native(settings)
        await plane.launch()
    except OperatorError as error:
        if settings.dataplane != "auto":
            raise
        log.error("dataplane.not_native", reason=error.message, note="I/O will be served in Python: right, but slow")
        return InProcessDataPlane()
    return plane


def _native(settings: Settings) -> NativeDataPlane:
    if settings.dataplane == "external":
        return NativeDataPlane(
            LaunchOptions(program=None, channel_socket=Path(settings.dataplane_socket)), name="native (external)"
        )
    program = find_program()
    if program is None:
        raise OperatorError(
            -errno.ENOENT,
            f"{PROGRAM} is not built or not found (${ENVIRONMENT}, beside the interpreter, build/native, $PATH)",
        )
    options = ["--spin-us", str(settings.spin_us), "--pool-mib", str(settings.pool_mib)]
    if settings.cpumask:
        options += ["--cpumask", settings.cpumask]
    options += ["--log-level", settings.log_level]
    rpc_socket = settings.rpc_socket.with_name(f"{settings.rpc_socket.name}.dp")
    return NativeDataPlane(LaunchOptions(program=program, rpc_socket=rpc_socket, options=tuple(options)))
