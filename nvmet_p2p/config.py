"""The daemon's own settings: what it must know before it can read its state or take a JSON-RPC call.

One flat table. A key has the same name in the TOML file, in ``Settings`` and (with dashes) as an option of
``nvmet-p2p serve``; an option wins over the file, the file over the default. What the target *serves* is not here:
that comes over JSON-RPC and is kept in the state directory.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from nvmet_p2p import limits
from nvmet_p2p.errors import ConfigError

SOCKET_PATH_BYTES_MAX = 107  # sizeof(sockaddr_un.sun_path) less the terminating zero, unix(7)
DATAPLANE_SUFFIX_BYTES = 3  # the data plane's own socket is beside ours: ".dp"
STAGING_PATTERN = r"^(off|auto|([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7])$"

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]
Dataplane = Literal["auto", "native", "inprocess", "external"]
ZeroCopy = Literal["auto", "off", "always"]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``nvmet_p2p.daemon.run`` is given.

    ``dataplane``: ``native`` starts the helper process, ``external`` uses one that listens at ``dataplane_socket``,
    ``auto`` is ``native`` where that is possible and else ``inprocess``. ``cpumask`` (as SPDK's ``-m``), ``spin_us``
    (microseconds of polling after work) and ``pool_mib`` (staging memory) are the helper's.

    ``tcp_congestion`` is a congestion control of the kernel for the connections of the listeners, ``system`` for the
    system's default, or ``auto`` for that unless it is BBR (see ``server.listener``).

    ``zero_copy_send``: reads of at least ``zero_copy_min_kib`` KiB are sent without the kernel copying them; ``auto``
    goes back to plain sends on a connection whose device has it copied after all, ``always`` does not.

    ``staging`` is the policy where none was set over JSON-RPC: "off", "auto" or a provider's PCI address, and never
    strict, since no call could be refused. ``cmb_mib``: how much of a provider's memory is taken at most; 0 for all of
    it. ``sysfs_root`` is for tests with a made tree.

    Times are in seconds, ``listen_backlog`` and ``unconnected_peers_max`` are numbers of connections,
    ``metrics_listen`` is ``host:port`` (``[host]:port`` for IPv6) or empty for no metrics.
    """

    rpc_socket: Path
    state_dir: Path
    log_level: LogLevel = "info"
    log_format: LogFormat = "console"
    dataplane: Dataplane = "auto"
    dataplane_socket: str = ""
    cpumask: str = ""
    spin_us: Annotated[int, Meta(ge=0, le=1_000_000)] = 20
    pool_mib: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    zero_copy_send: ZeroCopy = "auto"
    zero_copy_min_kib: Annotated[int, Meta(ge=0, le=1 << 20)] = 16
    staging: Annotated[str, Meta(pattern=STAGING_PATTERN)] = "auto"
    cmb_mib: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    sysfs_root: Path = Path("/sys")
    metrics_listen: str = ""
    connect_timeout_s: Annotated[float, Meta(gt=0, le=600)] = limits.CONNECT_TIMEOUT_S
    unconnected_peers_max: Annotated[int, Meta(ge=1, le=1_000_000)] = limits.UNCONNECTED_PEERS_MAX
    listen_backlog: Annotated[int, Meta(ge=1, le=65535)] = 1024
    tcp_congestion: Annotated[str, Meta(pattern="^[a-z0-9_-]{1,15}$")] = "auto"

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """``metrics_listen`` taken apart; ``None`` when metrics are off."""
        return parse_host_port(self.metrics_listen) if self.metrics_listen else None


def default_rpc_socket(environ: Mapping[str, str], uid: int) -> Path:
    """Where daemon and command line meet when nothing else was said."""
    if uid == 0:
        return Path("/run/nvmet-p2p/rpc.sock")
    return Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}") / "nvmet-p2p/rpc.sock"


def default_state_dir(environ: Mapping[str, str], uid: int) -> Path:
    """Where the configuration is kept: /var/lib for root, the XDG state directory for others."""
    if uid == 0:
        return Path("/var/lib/nvmet-p2p")
    home = environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path(environ.get("HOME", "/")) / ".local/state") / "nvmet-p2p"


def parse_host_port(text: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``; :class:`ConfigError` says which part is wrong."""
    host, separator, port = text.rpartition(":")
    if not separator or not host:
        raise ConfigError(f"{text!r} is not host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{text!r}: an IPv6 address goes into brackets, as in [::1]:9436")
    if not (port.isascii() and port.isdigit() and 0 <= int(port) <= 65535):
        raise ConfigError(f"{text!r}: the port must be a number from 0 to 65535")
    return host, int(port)


def load(
    file: Path | None,
    overrides: Mapping[str, Any],
    *,
    environ: Mapping[str, str] = os.environ,
    uid: int | None = None,
) -> Settings:
    """Settings from a TOML file (optional) and options; an override of ``None`` was not given.

    Raises :class:`ConfigError` with a message that names the file, the key and what was expected.
    """
    uid = os.getuid() if uid is None else uid
    table: dict[str, Any] = {
        "rpc_socket": str(default_rpc_socket(environ, uid)),
        "state_dir": str(default_state_dir(environ, uid)),
    }
    if file is not None:
        from_file = _read_toml(file)
        _convert(table | from_file, str(file))  # so that a mistake is blamed on the file, not on an option
        table |= from_file
    table |= {key: value for key, value in overrides.items() if value is not None}
    settings = _convert(table, "options")
    _validate(settings)
    return settings


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error


def _convert(table: dict[str, Any], origin: str) -> Settings:
    unknown = sorted(set(table) - set(Settings.__struct_fields__))
    if unknown:
        known = ", ".join(Settings.__struct_fields__)
        raise ConfigError(f"{origin}: unknown setting {unknown[0]!r} (there are: {known})")
    try:
        return msgspec.convert(table, Settings, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        what, separator, where = str(error).rpartition(" - at `$.")
        message = f"{where.rstrip('`')}: {what}" if separator else str(error)
        raise ConfigError(f"{origin}: {message}") from error


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"Expected a path, got `{type(value).__name__}`")


def _validate(settings: Settings) -> None:
    if not settings.rpc_socket.is_absolute():
        raise ConfigError(f"rpc_socket {str(settings.rpc_socket)!r} must be an absolute path")
    if not settings.state_dir.is_absolute():
        raise ConfigError(f"state_dir {str(settings.state_dir)!r} must be an absolute path")
    if not settings.sysfs_root.is_absolute():
        raise ConfigError(f"sysfs_root {str(settings.sysfs_root)!r} must be an absolute path")
    longest = SOCKET_PATH_BYTES_MAX - (DATAPLANE_SUFFIX_BYTES if settings.dataplane in ("auto", "native") else 0)
    length = len(os.fsencode(settings.rpc_socket))
    if length > longest:
        raise ConfigError(f"rpc_socket is {length} bytes long, a Unix socket's path has at most {longest} here")
    if (settings.dataplane == "external") != bool(settings.dataplane_socket):
        raise ConfigError("dataplane_socket goes with dataplane 'external', and the other way round")
    if settings.metrics_listen:
        parse_host_port(settings.metrics_listen)
