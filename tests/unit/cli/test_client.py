"""The command line's JSON-RPC client: answers in any framing, errors with their code, peers that misbehave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvmet_p2p.cli.client import RECV_BYTES, RpcClient, RpcConnectionError, RpcError
from tests.unit.cli.rpc_server import result, serving


def test_calls_follow_each_other(tmp_path: Path) -> None:
    with serving(tmp_path / "s", lambda method, params: result([method, params])), RpcClient(tmp_path / "s") as client:
        assert client.call("first") == ["first", None]
        assert client.call("second", {"a": "}"}) == ["second", {"a": "}"}]


def test_an_answer_longer_than_one_receive(tmp_path: Path) -> None:
    long = ["}" * 100] * (3 * RECV_BYTES // 100)
    with serving(tmp_path / "s", lambda *_: result(long)), RpcClient(tmp_path / "s") as client:
        assert client.call("x") == long


def test_a_refusal_carries_its_code(tmp_path: Path) -> None:
    refusal = json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": -17, "message": "File exists", "data": 3}})
    with serving(tmp_path / "s", lambda *_: refusal.encode()), RpcClient(tmp_path / "s") as client:
        with pytest.raises(RpcError) as caught:
            client.call("bdev_null_create")
    assert (caught.value.code, caught.value.message, caught.value.data) == (-17, "File exists", 3)
    assert str(caught.value) == "bdev_null_create: File exists (code -17)"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed the connection"),
        (b'{"jsonrpc": "2.0", "id": 1}', "not a JSON-RPC response"),
        (b'{"jsonrpc": "2.0", "id": 7, "result": 1}', "another request"),
    ],
)
def test_answers_that_are_none(tmp_path: Path, answer: bytes, message: str) -> None:
    with serving(tmp_path / "s", lambda *_: answer), RpcClient(tmp_path / "s") as client:
        with pytest.raises(RpcConnectionError, match=message):
            client.call("x")


def test_the_timeout_is_wall_time_of_the_whole_answer(tmp_path: Path) -> None:
    with serving(tmp_path / "s", lambda *_: b'{"jsonrpc":'), RpcClient(tmp_path / "s", timeout_s=0.01) as client:
        with pytest.raises(RpcConnectionError, match=r"no answer within 0\.01 s"):
            client.call("x")


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(RpcConnectionError, match="is `nvmet-p2p serve` running"):
        RpcClient(tmp_path / "absent")


def test_waits_for_a_socket_that_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[Any] = []

    def appear(_: float) -> None:
        contexts.append(serving(tmp_path / "s", lambda *_: result(1)))
        contexts[-1].__enter__()

    monkeypatch.setattr("nvmet_p2p.cli.client.time.sleep", appear)
    with RpcClient(tmp_path / "s", wait_s=60) as client:
        assert client.call("x") == 1
    contexts[0].__exit__(None, None, None)
    assert len(contexts) == 1
