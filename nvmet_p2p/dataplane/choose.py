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
from nvmet_p2p.state.journal import Journals

log = structlog.get_logger()


async def choose_dataplane(settings: Settings) -> DataPlane:
    """The data plane, launched but not started. Raises ``OperatorError`` when the one that was asked for cannot be had.

    With ``auto`` that is the native one, or the in-process one, loudly, where there is no native one.
    """
    journals = Journals(settings.state_dir)
    if settings.dataplane == "inprocess":
        return InProcessDataPlane(journals)
    try:
        plane = _native(settings, journals)
        await plane.launch()
    except OperatorError as error:
        if settings.dataplane != "auto":
            raise
        log.error("dataplane.not_native", reason=error.message, note="I/O will be served in Python: right, but slow")
        return InProcessDataPlane(journals)
    return plane


def _native(settings: Settings, journals: Journals) -> NativeDataPlane:
    if settings.dataplane == "external":
        options = LaunchOptions(program=None, channel_socket=Path(settings.dataplane_socket))
        return NativeDataPlane(options, name="native (external)", journals=journals)
    program = find_program()
    if program is None:
        raise OperatorError(
            -errno.ENOENT,
            f"{PROGRAM} is not built or not found (${ENVIRONMENT}, beside the interpreter, build/native, $PATH)",
        )
    arguments = ["--spin-us", str(settings.spin_us), "--pool-mib", str(settings.pool_mib)]
    arguments += ["--zero-copy-send", settings.zero_copy_send, "--zero-copy-min-kib", str(settings.zero_copy_min_kib)]
    if settings.cpumask:
        arguments += ["--cpumask", settings.cpumask]
    arguments += ["--log-level", settings.log_level]
    rpc_socket = settings.rpc_socket.with_name(f"{settings.rpc_socket.name}.dp")
    options = LaunchOptions(program=program, rpc_socket=rpc_socket, options=tuple(arguments))
    return NativeDataPlane(options, journals=journals)
