"""Readiness told to a service manager."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nvmet_p2p.observe import sd_notify


@pytest.mark.parametrize("abstract", [False, True])
def test_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"@nvmet-p2p-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert sd_notify.notify("READY=1", "STATUS=serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"


@pytest.mark.parametrize("address", ["", "relative", "/nonexistent/notify"])
def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sd_notify.notify("READY=1")
