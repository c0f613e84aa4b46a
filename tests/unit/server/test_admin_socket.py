"""The Unix socket: who may use it, in which order it answers, and every bound on it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nvmet_p2p.errors import ConfigError
from nvmet_p2p.server import admin_socket
from nvmet_p2p.server.admin_socket import AdminServer
from nvmet_p2p.server.dispatcher import Dispatcher
from nvmet_p2p.server.methods import METHODS
from tests.unit.server.fake_context import FakeContext

Serve = Callable[..., Awaitable[AdminServer]]
NAMES = b'{"jsonrpc":"2.0","id":1,"method":"nvmf_get_targets"}'
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":["nvmf_tgt"]}\n'


@pytest.fixture
def context() -> FakeContext:
    return FakeContext()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/rpc.sock"


@pytest.fixture
async def serve(path: Path, context: FakeContext) -> AsyncIterator[Serve]:
    servers: list[AdminServer] = []

    async def start(**options: Any) -> AdminServer:
        server = AdminServer(Dispatcher(options.pop("context", context), METHODS), path, **options)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()
        assert server.connections == 0


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> bytes:
        """Sends, and reads one answer (a line)."""
        self.writer.write(data)
        return await self.reader.readline()

    async def error(self, data: bytes) -> tuple[int, str]:
        response = json.loads(await self.ask(data))
        return response["error"]["code"], response["error"]["message"]

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@pytest.fixture
async def connect(path: Path) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    clients: list[Client] = []

    async def new() -> Client:
        client = Client(*await asyncio.open_unix_connection(path))
        clients.append(client)
        return client

    yield new
    for client in clients:
        await client.close()


Connect = Callable[[], Awaitable[Client]]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def content(path: Path) -> str | None:
    """``None`` when there is nothing, empty for a socket."""
    if not path.exists():
        return None
    return "" if path.is_socket() else path.read_text()


def put(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


async def test_permissions(serve: Serve, path: Path) -> None:
    mask = os.umask(0)
    try:
        await serve()
    finally:
        assert os.umask(mask) == 0  # ours is as it was
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


async def test_requests_back_to_back_and_in_pieces(serve: Serve, connect: Connect) -> None:
    await serve()
    client = await connect()
    assert await client.ask(NAMES) == ANSWER
    client.writer.write(NAMES * 3 + b"\n" + NAMES)
    assert [await client.reader.readline() for _ in range(4)] == [ANSWER] * 4
    for index in range(len(NAMES)):
        client.writer.write(NAMES[index : index + 1])
        await asyncio.sleep(0)
    assert await client.reader.readline() == ANSWER


async def test_the_last_request_before_a_half_close_is_answered(serve: Serve, connect: Connect) -> None:
    await serve()
    client = await connect()
    client.writer.write(NAMES)
    client.writer.write_eof()
    assert await client.reader.read() == ANSWER


@pytest.mark.parametrize("text", [b'{"jsonrpc" 1}', b"hello", b"}", b"[" * 33, b'{"a": tru}'])
async def test_broken_json_ends_the_connection_and_no_other(serve: Serve, connect: Connect, text: bytes) -> None:
    server = await serve()
    other = await connect()
    assert await other.ask(NAMES) == ANSWER
    client = await connect()
    client.writer.write(NAMES + text + NAMES)
    assert await client.reader.readline() == ANSWER
    error = json.loads(await client.reader.readline())
    assert (error["id"], error["error"]["code"]) == (None, -32700)
    assert await client.reader.read() == b""
    assert await other.ask(NAMES) == ANSWER
    assert server.connections == 1


async def test_a_request_cut_off_by_its_client(serve: Serve, connect: Connect) -> None:
    await serve()
    client = await connect()
    client.writer.write(NAMES[:-1])
    client.writer.write_eof()
    assert json.loads(await client.reader.readline())["error"]["code"] == -32700


async def test_nesting_limit(serve: Serve, connect: Connect) -> None:
    await serve(nesting_max=4)
    client = await connect()
    assert json.loads(await client.ask(b"[[[[]]]]"))[0]["error"]["code"] == -32600  # a batch of one that is no object
    assert await client.error(b"[[[[[]]]]]") == (-32700, "Parse error: more than 4 brackets within each other")


async def test_size_limit(serve: Serve, connect: Connect) -> None:
    await serve(request_bytes_max=len(NAMES))
    client = await connect()
    assert await client.ask(NAMES) == ANSWER
    assert (await client.error(NAMES[:-1] + b" }"))[0] == -32700


async def test_connection_limit(serve: Serve, connect: Connect) -> None:
    server = await serve(connections_max=2)
    first, second = await connect(), await connect()
    assert await first.ask(NAMES) == await second.ask(NAMES) == ANSWER
    third = await connect()
    code, message = await third.error(b"")
    assert (code, "there are 2 connections" in message) == (-32603, True)
    assert await third.reader.read() == b""
    await first.close()
    while server.connections > 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert await (await connect()).ask(NAMES) == ANSWER


async def test_only_root_and_the_own_user(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    await serve()
    for uid in (0, os.geteuid()):
        monkeypatch.setattr(admin_socket, "_peer_uid", lambda _, uid=uid: uid)
        assert await (await connect()).ask(NAMES) == ANSWER
    monkeypatch.setattr(admin_socket, "_peer_uid", lambda _: os.geteuid() + 1)
    client = await connect()
    code, message = await client.error(b"")
    assert (code, "may not use this socket" in message) == (-32603, True)
    assert await client.reader.read() == b""


async def test_the_peers_uid_is_the_kernels_word(serve: Serve, connect: Connect) -> None:
    seen: list[int] = []
    real = admin_socket._peer_uid

    def peer_uid(writer: asyncio.StreamWriter) -> int:
        seen.append(real(writer))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admin_socket, "_peer_uid", peer_uid)
        await serve()
        assert await (await connect()).ask(NAMES) == ANSWER
    assert seen == [os.geteuid()]


async def test_a_client_that_does_not_read_is_cut_off(serve: Serve, connect: Connect) -> None:
    server = await serve(send_timeout_s=0.05)
    client = await connect()
    assert await client.ask(NAMES) == ANSWER
    client.writer.write(b'{"jsonrpc":"2.0","id":1,"method":"rpc.discover"}' * 200)
    while server.connections:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_stop_removes_the_socket_and_ends_idle_connections(serve: Serve, connect: Connect, path: Path) -> None:
    server = await serve()
    client = await connect()
    assert await client.ask(NAMES) == ANSWER
    await server.stop()
    assert content(path) is None
    assert await client.reader.read() == b""


class SlowContext(FakeContext):
    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def commit(self, new: Any) -> None:
        self.begun.set()
        await self.go.wait()
        await super().commit(new)


CREATE = b'{"jsonrpc":"2.0","id":1,"method":"nvmf_create_transport","params":{"trtype":"TCP"}}'


async def test_stop_waits_for_a_change_and_its_answer(serve: Serve, connect: Connect) -> None:
    context = SlowContext()
    server = await serve(context=context)
    client = await connect()
    client.writer.write(CREATE + NAMES)
    await context.begun.wait()
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    context.go.set()
    await stopping
    assert await client.reader.read() == b'{"jsonrpc":"2.0","id":1,"result":true}\n'
    assert list(context.config.transports) == ["TCP"]


async def test_a_change_is_finished_when_its_client_goes_away(serve: Serve, connect: Connect) -> None:
    context = SlowContext()
    server = await serve(context=context)
    client = await connect()
    client.writer.write(CREATE)
    await context.begun.wait()
    await client.close()
    context.go.set()
    while server.connections:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert list(context.config.transports) == ["TCP"]


async def test_stop_does_not_wait_for_a_bdev_that_may_never_come(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_socket, "STOP_GRACE_S", 0.01)
    server = await serve()
    client = await connect()
    client.writer.write(
        b'{"jsonrpc":"2.0","id":1,"method":"bdev_get_bdevs","params":{"name":"x","timeout":600000}}' + NAMES
    )
    other = await connect()
    assert await other.ask(NAMES) == ANSWER
    await server.stop()
    assert await client.reader.read() == b""


async def test_a_stale_socket_is_replaced(serve: Serve, connect: Connect, path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    await serve()
    assert await (await connect()).ask(NAMES) == ANSWER


async def test_a_socket_in_use_stays(serve: Serve, path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ConfigError, match="another daemon is listening"):
            await serve()
    assert content(path) == ""


async def test_what_is_no_socket_stays(serve: Serve, path: Path) -> None:
    path.parent.mkdir()
    put(path, "mine")
    with pytest.raises(ConfigError, match="no socket"):
        await serve()
    assert content(path) == "mine"


async def test_paths_that_cannot_be_used(tmp_path: Path, context: FakeContext) -> None:
    (tmp_path / "file").write_text("")
    dispatcher = Dispatcher(context, METHODS)
    with pytest.raises(ConfigError, match="cannot make its folder"):
        await AdminServer(dispatcher, tmp_path / "file/rpc.sock").start()
    with pytest.raises(ConfigError, match="rpc_socket"):
        await AdminServer(dispatcher, tmp_path / ("x" * 200)).start()


async def test_stop_leaves_the_socket_of_another(serve: Serve, path: Path) -> None:
    server = await serve()
    remove(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        await server.stop()
        assert content(path) == ""
