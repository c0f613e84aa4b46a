"""JSON-RPC 2.0: one text in, one answer (or none) out.

Exact where SPDK is loose: ``jsonrpc`` is required, a request without ``id`` is never answered unless it is no valid
request at all, an ``id`` of null is an id. As SPDK: parameters are an object (an array is -32602), null counts as none,
and broken JSON ends the connection, because there is no place to go on from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from nvmet_p2p import limits
from nvmet_p2p.errors import NvmetP2PError, OperatorError
from nvmet_p2p.server.context import Context
from nvmet_p2p.server.schema import Method
from nvmet_p2p.target.request_types import decode
from nvmet_p2p.target.validate import INTERNAL_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, PARSE_ERROR, invalid

log = structlog.get_logger()

_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send, if anything, and whether the connection must end after it."""

    data: bytes = b""
    close: bool = False


class Dispatcher:
    """The methods over one context. Calls that change something run one after the other, on whatever connection."""

    def __init__(self, context: Context, methods: Mapping[str, Method]) -> None:
        self._context = context
        self._methods = dict(methods)
        for method in methods.values():
            self._methods |= dict.fromkeys(method.aliases, method)
        self._changing = asyncio.Lock()

    async def quiesce(self) -> None:
        """Returns when no change is being carried out; none is begun afterwards. Once, at the end."""
        await self._changing.acquire()

    async def handle(self, text: bytes) -> Answer:
        """Answers one JSON text: a request or a batch."""
        try:
            message = msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return broken(str(error))
        if isinstance(message, list):
            return await self._batch(message)
        response = await self._request(message)
        return Answer() if response is None else Answer(_encode(response))

    async def _batch(self, messages: list[Any]) -> Answer:
        if not messages:
            return Answer(_encode(_failure(None, INVALID_REQUEST, "Invalid request: an empty batch")))
        if len(messages) > limits.RPC_BATCH_MAX:
            text = f"Invalid request: a batch of {len(messages)}, at most {limits.RPC_BATCH_MAX} are taken"
            return Answer(_encode(_failure(None, INVALID_REQUEST, text)))
        responses = [response for message in messages if (response := await self._request(message)) is not None]
        return Answer(_encode(responses) if responses else b"")

    async def _request(self, message: Any) -> dict[str, Any] | None:
        """The response, or ``None`` for a notification."""
        if not isinstance(message, dict):
            return _failure(None, INVALID_REQUEST, "Invalid request: not an object")
        request_id = message.get("id", _MISSING)
        if isinstance(request_id, bool) or not (
            request_id is _MISSING or request_id is None or isinstance(request_id, str | int | float)
        ):
            return _failure(None, INVALID_REQUEST, "Invalid request: id must be a string, a number or null")
        reply_id = None if request_id is _MISSING else request_id
        fault = _envelope_fault(message)
        if fault is not None:
            return _failure(reply_id, INVALID_REQUEST, f"Invalid request: {fault}")
        try:
            result = await self._call(message["method"], message.get("params"))
        except OperatorError as error:
            response = _failure(reply_id, error.code, error.message)
        except NvmetP2PError as error:
            log.error("rpc.failed", method=message["method"], error=str(error), kind=type(error).__name__)
            response = _failure(reply_id, INTERNAL_ERROR, f"Internal error: {error}")
        else:
            response = {"jsonrpc": "2.0", "id": reply_id, "result": result}
        return None if request_id is _MISSING else response

    async def _call(self, name: str, params: Any) -> Any:
        method = self._methods.get(name)
        if method is None:
            raise OperatorError(METHOD_NOT_FOUND, f"Method not found: {name!r}")
        if isinstance(params, list):
            raise invalid("params: expected an object, got an array; parameters go by name")
        request = decode(method.params, {} if params is None else params)
        if not method.changes:
            return await method.handler(self._context, request)
        async with self._changing:
            result = await method.handler(self._context, request)
        log.info("rpc.changed", method=name)
        return result


def broken(reason: str) -> Answer:
    """The answer to what is not JSON; the connection ends."""
    return Answer(_encode(_failure(None, PARSE_ERROR, f"Parse error: {reason}")), close=True)


def refused(reason: str) -> bytes:
    """Said to a connection that is not served at all."""
    return _encode(_failure(None, INTERNAL_ERROR, reason))


def _envelope_fault(message: dict[str, Any]) -> str | None:
    if message.get("jsonrpc") != "2.0":
        return 'jsonrpc must be "2.0"'
    if not isinstance(message.get("method"), str):
        return "method must be a string"
    params = message.get("params")
    if params is not None and not isinstance(params, dict | list):
        return "params must be an object"
    return None


def _failure(request_id: Any, code: int, text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}}


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"
