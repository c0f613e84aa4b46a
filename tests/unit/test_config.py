"""Settings: defaults, precedence, and what is said about mistakes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from nvmet_p2p import config
from nvmet_p2p.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
USER = {"HOME": "/home/a", "XDG_RUNTIME_DIR": "/run/user/7"}


def load(file: Path | None = None, uid: int = 7, **overrides: Any) -> config.Settings:
    return config.load(file, overrides, environ=USER, uid=uid)


def write(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_of_root_and_of_a_user() -> None:
    root = load(uid=0)
    assert (root.rpc_socket, root.state_dir) == (Path("/run/nvmet-p2p/rpc.sock"), Path("/var/lib/nvmet-p2p"))
    user = load()
    assert user.rpc_socket == Path("/run/user/7/nvmet-p2p/rpc.sock")
    assert user.state_dir == Path("/home/a/.local/state/nvmet-p2p")
    assert config.default_state_dir({"XDG_STATE_HOME": "/s"}, 7) == Path("/s/nvmet-p2p")
    assert config.default_rpc_socket({}, 7) == Path("/run/user/7/nvmet-p2p/rpc.sock")


def test_an_option_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, 'log_level = "debug"\nlisten_backlog = 7\nconnect_timeout_s = 2')
    settings = load(file, log_level="error", log_format=None)
    assert settings.log_level == "error"
    assert settings.listen_backlog == 7
    assert settings.connect_timeout_s == 2.0
    assert settings.log_format == "console"


def test_the_example_file_holds_every_key_at_its_default() -> None:
    example = ROOT / "deploy/examples/config.toml"
    assert set(tomllib.loads(example.read_text(encoding="utf-8"))) == set(config.Settings.__struct_fields__) - {
        "sysfs_root"
    }
    assert load(example, uid=0) == load(uid=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1", "unknown setting 'nonsense' (there are: rpc_socket, state_dir"),
        ("log_level = 'loud'", "log_level: Invalid enum value 'loud'"),
        ("listen_backlog = 'many'", "listen_backlog: Expected `int`, got `str`"),
        ("listen_backlog = 0", "listen_backlog: Expected `int` >= 1"),
        ("listen_backlog = 65536", "listen_backlog: Expected `int` <= 65535"),
        ("connect_timeout_s = 0", "connect_timeout_s: Expected `float` > 0"),
        ("unconnected_peers_max = true", "unconnected_peers_max: Expected `int`, got `bool`"),
        ("dataplane = 'fast'", "dataplane: Invalid enum value 'fast'"),
        ("tcp_congestion = 'Cubic; '", "tcp_congestion: Expected `str` matching regex"),
        ("spin_us = -1", "spin_us: Expected `int` >= 0"),
        ("pool_mib = 0", "pool_mib: Expected `int` >= 1"),
        ("zero_copy_send = 'never'", "zero_copy_send: Invalid enum value 'never'"),
        ("state_dir = 1", "state_dir: Expected a path, got `int`"),
        ("= 1", "not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.toml")
    (tmp_path / "latin").write_bytes(b"log_level = '\xe9'")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "latin")


def test_a_mistake_in_an_option_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^options: log_level: "):
        load(write(tmp_path, ""), log_level="loud")


@pytest.mark.parametrize("key", ["rpc_socket", "state_dir"])
def test_paths_are_absolute(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} .* must be an absolute path"):
        load(**dict[str, Any]({key: "relative/x"}))


def test_length_of_the_socket_path_at_the_limit_and_one_more() -> None:
    longest = "/" + "a" * (config.SOCKET_PATH_BYTES_MAX - 1)
    assert str(load(rpc_socket=longest, dataplane="inprocess").rpc_socket) == longest
    with pytest.raises(ConfigError, match="108 bytes long"):
        load(rpc_socket=longest + "a", dataplane="inprocess")
    longest = longest[: -config.DATAPLANE_SUFFIX_BYTES]  # the native data plane's own is beside it
    assert str(load(rpc_socket=longest, dataplane="native").rpc_socket) == longest
    with pytest.raises(ConfigError, match="105 bytes long"):
        load(rpc_socket=longest + "a")


def test_external_goes_with_its_socket() -> None:
    assert load(dataplane="external", dataplane_socket="/run/x").dataplane_socket == "/run/x"
    with pytest.raises(ConfigError, match="goes with"):
        load(dataplane="external")
    with pytest.raises(ConfigError, match="goes with"):
        load(dataplane_socket="/run/x")


def test_metrics_address() -> None:
    assert load().metrics_address is None
    assert load(metrics_listen="127.0.0.1:9436").metrics_address == ("127.0.0.1", 9436)
    assert load(metrics_listen="[::1]:0").metrics_address == ("::1", 0)


@pytest.mark.parametrize("text", ["9436", ":9436", "host:", "host:-1", "host:65536", "host:٣", "::1:9436", "host:+1"])
def test_metrics_address_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        load(metrics_listen=text)
