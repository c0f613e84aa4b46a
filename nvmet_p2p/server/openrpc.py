"""The OpenRPC 1.3.2 document of the admin API, made from the method table (``rpc.discover``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import NODEFAULT

from nvmet_p2p.server.schema import Method, components_of, params_of

OPENRPC_VERSION = "1.3.2"
COMMON_ERRORS = {
    -32602: "a parameter is missing, unknown, of a wrong type or out of range, or names something that is not there",
    -95: "a parameter asks for something that SPDK has and this target has not",
}


def document(methods: Mapping[str, Method], version: str) -> dict[str, Any]:
    """The document as JSON values."""
    return {
        "openrpc": OPENRPC_VERSION,
        "info": {
            "title": "nvmet_p2p admin API",
            "version": version,
            "description": "JSON-RPC 2.0 on a Unix socket; objects and arrays back to back, parameters by name.",
        },
        "methods": [_method(method) for method in methods.values()],
        "components": {"schemas": components_of([method.params for method in methods.values()])},
    }


def _method(method: Method) -> dict[str, Any]:
    params = []
    for param in params_of(method.params):
        schema = dict(param.schema)
        if param.default is not NODEFAULT:
            schema["default"] = msgspec.to_builtins(param.default)
        entry: dict[str, Any] = {"name": param.name, "description": param.description, "required": param.required}
        params.append(entry | {"schema": schema})
    errors = COMMON_ERRORS | method.errors
    return {
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "by-name",
        "params": params,
        "result": {
            "name": "result",
            "description": method.result,
            "schema": msgspec.json.schema(method.result_type),
        },
        "errors": [{"code": code, "message": text} for code, text in errors.items()],
        "x-spdk": method.spdk,
        "x-since": method.since,
    }
