"""The admin socket against broken, wrong and too large requests (JSON-RPC 2.0): an error each time, and no change."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.conftest import MakeTree
from tests.support.daemon import Daemon, Ns, RpcError

PARSE, REQUEST, METHOD, PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603
NQN = "nqn.2026-01.org.example:never"


@pytest.fixture
def sock(daemon: Daemon) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(10)
        made.connect(str(daemon.socket))
        yield made


@pytest.fixture(autouse=True)
def unchanged(daemon: Daemon) -> Iterator[None]:
    """Whatever was sent, the configuration is the same afterwards and the daemon answers."""
    before = daemon.rpc("framework_get_config", name="nvmf"), daemon.rpc("framework_get_config", name="bdev")
    yield
    assert (daemon.rpc("framework_get_config", name="nvmf"), daemon.rpc("framework_get_config", name="bdev")) == before


def answer(sock: socket.socket) -> Any:
    """The next JSON value; None when the daemon has closed."""
    text = ""
    while True:
        try:
            return json.JSONDecoder().raw_decode(text)[0]
        except ValueError:
            chunk = sock.recv(65536)
            if not chunk:
                return None
            text = (text + chunk.decode()).lstrip()


@pytest.mark.parametrize(
    "text",
    [
        b'{"jsonrpc": "2.0", "method": ]',
        b"\xff\xfe\xfd}",
        b"}",
        b'{"jsonrpc": "2.0", "method": "x\n"}',
        b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 5000,
    ],
    ids=["syntax", "not-utf8", "brace", "control-character", "nested", "nested-open"],
)
def test_broken_json(sock: socket.socket, text: bytes) -> None:
    sock.sendall(text)
    got = answer(sock)
    assert got is None or got["error"]["code"] in (PARSE, REQUEST)


CREATE, MALLOC, NULL = "nvmf_create_subsystem", "bdev_malloc_create", "bdev_null_create"
WRONG: dict[str, tuple[dict[str, Any], int]] = {
    "unknown": ({"method": "no_such_method"}, METHOD),
    "no-method": ({}, REQUEST),
    "method-type": ({"method": 7}, REQUEST),
    "missing": ({"method": CREATE}, PARAMS),
    "type": ({"method": CREATE, "params": {"nqn": 7}}, PARAMS),
    "unknown-parameter": ({"method": CREATE, "params": {"nqn": NQN, "colour": 1}}, PARAMS),
    "array": ({"method": CREATE, "params": [NQN]}, PARAMS),
    "long": ({"method": CREATE, "params": {"nqn": "x" * 5000}}, INTERNAL),  # SPDK finds this after decoding: -32603
    "negative": ({"method": MALLOC, "params": {"num_blocks": -1, "block_size": 512}}, PARAMS),
    "huge": ({"method": NULL, "params": {"name": "q", "num_blocks": 1 << 70, "block_size": 512}}, PARAMS),
}


@pytest.mark.parametrize(("members", "code"), list(WRONG.values()), ids=list(WRONG))
def test_wrong_request(sock: socket.socket, members: dict[str, Any], code: int) -> None:
    sock.sendall(json.dumps({"jsonrpc": "2.0", "id": 1} | members).encode())
    got = answer(sock)
    assert got["error"]["code"] == code, got
    assert got["error"]["message"]
    sock.sendall(b'{"jsonrpc": "2.0", "method": "spdk_get_version", "id": 2}')
    assert answer(sock)["id"] == 2, "the connection is still good"


def test_objects_back_to_back_and_in_pieces(sock: socket.socket) -> None:
    """SPDK's wire form has no delimiter."""
    one = b'{"jsonrpc": "2.0", "method": "spdk_get_version", "id": 1}'
    for value in one + one.replace(b"1}", b"2}"):
        sock.sendall(bytes([value]))
    text = b""
    while text.count(b'"id"') < 2:
        text += sock.recv(65536)


def test_batch(sock: socket.socket) -> None:
    """Each member gets its answer; one that fails does not undo the others, and none is lost."""
    members = [
        {"jsonrpc": "2.0", "method": name, "id": number} for number, name in enumerate(("spdk_get_version", "nope"))
    ]
    sock.sendall(json.dumps(members).encode())
    got = {entry["id"]: entry for entry in answer(sock)}
    assert "result" in got[0]
    assert got[1]["error"]["code"] == METHOD


def test_refused_changes(daemon: Daemon, make_tree: MakeTree) -> None:
    """Calls that name what is not there or is there already: an error, and everything as before (checked above)."""
    with pytest.raises(RpcError):
        daemon.rpc("nvmf_delete_subsystem", nqn=NQN)
    with pytest.raises(RpcError):
        daemon.rpc("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "nothing"})
    with pytest.raises(RpcError):
        daemon.rpc("bdev_aio_create", name="gone", filename="/no/such/file", block_size=512)
    with pytest.raises(RpcError):
        daemon.rpc("nvmf_create_transport", trtype="TCP")
    tree = make_tree(Ns())
    for nsid in (1, 33, 0xFFFFFFFF):
        with pytest.raises(RpcError):
            tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": tree.bdevs[1][0], "nsid": nsid})
    with pytest.raises(RpcError):
        tree.listen()
    with pytest.raises(RpcError):
        tree.rpc("nvmf_subsystem_remove_ns", nsid=9)
    tree.delete()


def test_many_idle_clients(daemon: Daemon) -> None:
    """Connections are bounded; those beyond the bound do not take the daemon away from the ones within."""
    idle = []
    try:
        for _ in range(200):
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(5)
            idle.append(made)
            if made.connect_ex(str(daemon.socket)):
                break
        assert daemon.rpc("spdk_get_version")
    finally:
        for made in idle:
            made.close()


def test_drives_of_the_data_planes_own(daemon: Daemon) -> None:
    """Refused with the reason where there is no driver for them, or no drive; nothing has changed then."""
    spdk = daemon.rpc("p2p_get_status")["spdk"]
    drive = {"name": "Nvme0", "trtype": "PCIe", "traddr": "0000:ff:1f.6"}
    saved = daemon.rpc("save_config")
    with pytest.raises(RpcError) as caught:
        daemon.rpc("bdev_nvme_attach_controller", **drive)
    assert caught.value.code == (-19 if spdk["built"] else -95)
    assert spdk["built"] or spdk["reason"] in caught.value.message
    with pytest.raises(RpcError) as caught:
        daemon.rpc("load_subsystem_config", config=[{"method": "bdev_nvme_attach_controller", "params": drive}])
    assert caught.value.code == (-19 if spdk["built"] else -95)
    assert daemon.rpc("save_config") == saved
    assert all(controller["name"] != "Nvme0" for controller in daemon.rpc("bdev_nvme_get_controllers"))
