"""Options that more than one of the commands takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from nvmet_p2p import config

ABSOLUTE: Final = click.Path(path_type=Path, resolve_path=True)
SOCKET_DEFAULT: Final = "/run/nvmet-p2p/rpc.sock as root, $XDG_RUNTIME_DIR/nvmet-p2p/rpc.sock otherwise"
Function = TypeVar("Function", bound=Callable[..., Any])


def rpc_socket_option(about: str = "The daemon's Unix socket.") -> Callable[[Function], Function]:
    """``--rpc-socket`` of a command that is a client of a daemon, or may be; ``about`` is its help text.

    The command gets an absolute ``rpc_socket: Path``. ``serve`` has an option of its own, without a default: a
    configuration file may name the socket there.
    """
    return click.option(
        "--rpc-socket",
        type=ABSOLUTE,
        default=lambda: config.default_rpc_socket(os.environ, os.getuid()),
        help=about,
    )
