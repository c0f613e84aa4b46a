"""JSON-RPC 2.0 as the specification has it, and SPDK's codes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from nvmet_p2p import limits
from nvmet_p2p.errors import StateError
from nvmet_p2p.server.dispatcher import Dispatcher
from nvmet_p2p.server.methods import METHODS
from tests.unit.server.fake_context import FakeContext

NAMES = {"jsonrpc": "2.0", "method": "nvmf_get_targets"}
CREATE = {"jsonrpc": "2.0", "method": "nvmf_create_transport", "params": {"trtype": "TCP"}}


@pytest.fixture
def context() -> FakeContext:
    return FakeContext()


@pytest.fixture
def dispatcher(context: FakeContext) -> Dispatcher:
    return Dispatcher(context, METHODS)


async def ask(dispatcher: Dispatcher, message: Any) -> Any:
    """The decoded answer, ``None`` for silence. The connection must go on."""
    answer = await dispatcher.handle(json.dumps(message, indent=2).encode())
    assert not answer.close
    return json.loads(answer.data) if answer.data else None


def code(response: Any) -> int:
    assert set(response) == {"jsonrpc", "id", "error"}
    assert set(response["error"]) == {"code", "message"}
    return int(response["error"]["code"])


@pytest.mark.parametrize("request_id", ["a", "", 0, 1, -7, 2**70, 1.5, None])
async def test_any_id_comes_back(dispatcher: Dispatcher, request_id: Any) -> None:
    response = await ask(dispatcher, NAMES | {"id": request_id})
    assert response == {"jsonrpc": "2.0", "id": request_id, "result": ["nvmf_tgt"]}


@pytest.mark.parametrize("request_id", [True, [], {}])
async def test_other_ids_are_invalid(dispatcher: Dispatcher, request_id: Any) -> None:
    response = await ask(dispatcher, NAMES | {"id": request_id})
    assert (code(response), response["id"]) == (-32600, None)


async def test_a_notification_is_carried_out_and_not_answered(dispatcher: Dispatcher, context: FakeContext) -> None:
    assert await ask(dispatcher, CREATE) is None
    assert list(context.config.transports) == ["TCP"]
    assert await ask(dispatcher, CREATE) is None  # nor is its error
    assert await ask(dispatcher, {"jsonrpc": "2.0", "method": "no_such_method"}) is None
    assert await ask(dispatcher, NAMES | {"params": {"colour": 1}}) is None


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"id": 1},
        {"method": "nvmf_get_targets", "id": 1},
        {"jsonrpc": "1.0", "method": "nvmf_get_targets", "id": 1},
        {"jsonrpc": 2.0, "method": "nvmf_get_targets", "id": 1},
        {"jsonrpc": "2.0", "method": 1, "id": 1},
        {"jsonrpc": "2.0", "id": 1},
        NAMES | {"params": "x", "id": 1},
        NAMES | {"params": 1},
        NAMES | {"params": False},
        1,
        "text",
        None,
        [],
    ],
)
async def test_invalid_requests(dispatcher: Dispatcher, message: Any) -> None:
    response = await ask(dispatcher, message)
    assert code(response) == -32600
    assert response["id"] == (message.get("id") if isinstance(message, dict) else None)


@pytest.mark.parametrize("params", [None, {}])
async def test_no_parameters(dispatcher: Dispatcher, params: Any) -> None:
    assert (await ask(dispatcher, NAMES | {"id": 1, "params": params}))["result"] == ["nvmf_tgt"]


async def test_errors_of_calls(dispatcher: Dispatcher) -> None:
    async def call(method: str, params: Any) -> tuple[int, str]:
        response = await ask(dispatcher, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        return code(response), response["error"]["message"]

    assert await call("no_such_method", {}) == (-32601, "Method not found: 'no_such_method'")
    assert await call("nvmf_get_targets", []) == (
        -32602,
        "params: expected an object, got an array; parameters go by name",
    )
    assert await call("nvmf_get_targets", {"a": 1}) == (-32602, "params: there is no parameter 'a'")
    assert await call("nvmf_delete_subsystem", {}) == (-32602, "params.nqn: required, and missing")
    assert await call("nvmf_delete_subsystem", {"nqn": 1}) == (-32602, "params.nqn: expected str, got int")
    assert await call("nvmf_get_transports", {"trtype": "TCP"}) == (
        -19,
        "No such device: there is no transport 'TCP'",
    )


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[}",
        b'{"jsonrpc": tru}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"a": 1e999}',
        b'{"a": NaN}',
        b'{"a" 1}',
        b"{'a': 1}",
        b'[1,2,{"jsonrpc": "2.0", "method"]',
        b'{"a": "\x01"}',
    ],
)
async def test_broken_json_is_told_and_ends_the_connection(dispatcher: Dispatcher, text: bytes) -> None:
    answer = await dispatcher.handle(text)
    response = json.loads(answer.data)
    assert (code(response), response["id"], answer.close) == (-32700, None, True)


async def test_batch(dispatcher: Dispatcher, context: FakeContext) -> None:
    responses = await ask(
        dispatcher,
        [CREATE | {"id": 1}, CREATE, NAMES | {"id": "n"}, 1, {"foo": "boo"}, CREATE | {"id": 2}],
    )
    assert [response["id"] for response in responses] == [1, "n", None, None, 2]
    assert [response["error"]["code"] if "error" in response else 0 for response in responses] == [
        0,
        0,
        -32600,
        -32600,
        -32603,
    ]
    assert context.commits == 1


async def test_batch_of_notifications_is_not_answered(dispatcher: Dispatcher) -> None:
    assert await ask(dispatcher, [NAMES, NAMES]) is None


async def test_batch_limit(dispatcher: Dispatcher) -> None:
    responses = await ask(dispatcher, [NAMES | {"id": n} for n in range(limits.RPC_BATCH_MAX)])
    assert [response["id"] for response in responses] == list(range(limits.RPC_BATCH_MAX))
    response = await ask(dispatcher, [NAMES | {"id": 1}] * (limits.RPC_BATCH_MAX + 1))
    assert (code(response), response["id"]) == (-32600, None)


async def test_answers_end_with_a_newline(dispatcher: Dispatcher) -> None:
    answer = await dispatcher.handle(json.dumps(NAMES | {"id": 1}).encode())
    assert answer.data == b'{"jsonrpc":"2.0","id":1,"result":["nvmf_tgt"]}\n'


class SlowContext(FakeContext):
    """Each commit waits until it is let go, and notes if another one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.running = 0
        self.most = 0

    async def commit(self, new: Any) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        await self.go.wait()
        await super().commit(new)
        self.running -= 1


async def test_changes_never_overlap_and_reads_do_not_wait() -> None:
    context = SlowContext()
    dispatcher = Dispatcher(context, METHODS)

    def create(name: str) -> dict[str, Any]:
        params = {"name": name, "block_size": 512, "num_blocks": 1}
        return {"jsonrpc": "2.0", "id": name, "method": "bdev_null_create", "params": params}

    changes = [asyncio.create_task(ask(dispatcher, create(name))) for name in ("a", "b", "c")]
    await context.begun.wait()
    assert (await ask(dispatcher, NAMES | {"id": 1}))["result"] == ["nvmf_tgt"]
    context.go.set()
    assert [(await change)["result"] for change in changes] == ["a", "b", "c"]
    assert (context.most, list(context.config.bdevs)) == (1, ["a", "b", "c"])


async def test_a_disk_that_cannot_be_written_is_told() -> None:
    class Full(FakeContext):
        async def commit(self, new: Any) -> None:
            raise StateError("cannot write config.json: No space left on device")

    context = Full()
    response = await ask(Dispatcher(context, METHODS), CREATE | {"id": 1})
    assert code(response) == -32603
    assert "No space left" in response["error"]["message"]
    assert not context.config.transports


async def test_quiesce_waits_for_the_change_and_lets_none_begin() -> None:
    context = SlowContext()
    dispatcher = Dispatcher(context, METHODS)
    change = asyncio.create_task(ask(dispatcher, CREATE | {"id": 1}))
    await context.begun.wait()
    quiet = asyncio.create_task(dispatcher.quiesce())
    late = asyncio.create_task(ask(dispatcher, CREATE | {"id": 2}))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not quiet.done()
    context.go.set()
    await quiet
    assert (await change)["result"] is True
    assert not late.done()
    late.cancel()
