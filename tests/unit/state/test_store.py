"""The state file: what was saved is loaded, and anything else is refused and left alone."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from nvmet_p2p.errors import StateError
from nvmet_p2p.state import store
from nvmet_p2p.state.store import FileStore
from nvmet_p2p.target.config import (
    BdevConfig,
    ListenAddress,
    ListenerConfig,
    NamespaceConfig,
    SubsystemConfig,
    TargetConfig,
)

ADDRESS = ListenAddress(trtype="TCP", adrfam="IPv4", traddr="127.0.0.1", trsvcid="4420")
CONFIG = TargetConfig(
    bdevs={name: BdevConfig(name=name, kind="null", uuid="u-" + name, num_blocks=8, block_size=512) for name in "zax"},
    subsystems={
        "nqn.2026-11.org.example:a": SubsystemConfig(
            nqn="nqn.2026-11.org.example:a",
            namespaces={7: NamespaceConfig(nsid=7, bdev_name="z", uuid="ü", anagrpid=3)},
            listeners=(ListenerConfig(address=ADDRESS, ana_states={3: "inaccessible"}),),
        )
    },
)


def test_first_start_is_an_empty_configuration(tmp_path: Path) -> None:
    assert FileStore(tmp_path / "deep" / "dir").load() == TargetConfig()


def test_saved_is_loaded_in_the_same_order(tmp_path: Path) -> None:
    first = FileStore(tmp_path)
    first.save(TargetConfig())
    first.save(CONFIG)
    first.close()
    loaded = FileStore(tmp_path).load()
    assert loaded == CONFIG
    assert list(loaded.bdevs) == list("zax")
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == 0o600


def test_a_second_daemon_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = FileStore(tmp_path)
    with pytest.raises(StateError, match="in use by another"):
        FileStore(tmp_path)
    first.close()
    FileStore(tmp_path).close()


def test_every_truncation_is_refused_and_left_untouched(tmp_path: Path) -> None:
    whole = store.encode(CONFIG)
    target = FileStore(tmp_path)
    for length in range(len(whole.rstrip())):
        target.path.write_bytes(whole[:length])
        with pytest.raises(StateError, match="left untouched"):
            target.load()
        assert target.path.read_bytes() == whole[:length]


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7, 0.9])
def test_a_flipped_bit_is_refused(tmp_path: Path, position: float) -> None:
    whole = bytearray(store.encode(CONFIG))
    at = (
        whole.index(b"0", int(len(whole) * position))
        if b"0" in whole[int(len(whole) * position) :]
        else len(whole) // 2
    )
    whole[at] ^= 1
    target = FileStore(tmp_path)
    target.path.write_bytes(whole)
    with pytest.raises(StateError, match="left untouched"):
        target.load()


def test_a_newer_version_is_refused_by_its_number(tmp_path: Path) -> None:
    document = msgspec.json.decode(store.encode(CONFIG))
    document["version"] = store.VERSION + 1
    document["config"] = {"a": "shape of the future"}
    raw = msgspec.json.encode(document)
    target = FileStore(tmp_path)
    target.path.write_bytes(raw)
    with pytest.raises(StateError, match=rf"version {store.VERSION + 1}.*left untouched"):
        target.load()
    assert target.path.read_bytes() == raw


def test_a_left_over_temporary_file_does_no_harm(tmp_path: Path) -> None:
    target = FileStore(tmp_path)
    target.save(CONFIG)
    (tmp_path / "config.json.new").write_bytes(b"half a")
    assert target.load() == CONFIG
    target.save(TargetConfig())
    assert target.load() == TargetConfig()


def test_a_failed_write_keeps_the_old_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = FileStore(tmp_path)
    target.save(CONFIG)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        target.save(TargetConfig())
    monkeypatch.undo()
    assert target.load() == CONFIG
    assert not (tmp_path / "config.json.new").exists()
