"""What a method of the admin API is. The table of all methods is ``nvmet_p2p.server.methods.METHODS``.

A ``Method`` holds everything that is known of one: the struct of its parameters (names, types, ranges, descriptions,
what is refused), its handler, its result. Validation, the OpenRPC document and ``docs/rpc.md`` all come from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import NODEFAULT
from msgspec.inspect import StructType, type_info

from nvmet_p2p.server.context import Context
from nvmet_p2p.target.request_types import Request, field_extra

Handler = Callable[[Context, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method of the admin API.

    ``changes``: it may change the configuration; such calls never overlap. ``spdk``: SPDK 26.09 has it, with the same
    parameters. ``current``: ``rpc_get_methods`` lists it as callable now. ``errors``: codes beside -32602 and -95, with
    when they are given.
    """

    name: str
    params: type[Request]
    handler: Handler
    summary: str
    result: str
    result_type: Any = bool
    changes: bool = False
    spdk: bool = True
    current: bool = True
    since: str = "0.1.0"
    aliases: tuple[str, ...] = ()
    errors: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A parameter as the documents show it. ``schema`` is JSON Schema."""

    name: str
    required: bool
    default: Any  # NODEFAULT when there is none to show
    description: str
    schema: dict[str, Any]
    hint: bool
    only: tuple[Any, ...] | None


def params_of(kind: type[msgspec.Struct], ref_template: str = "#/components/schemas/{name}") -> list[Param]:
    """The parameters of a request, in the order of the struct, the target's name last."""
    info = type_info(kind)
    assert isinstance(info, StructType)
    _, components = msgspec.json.schema_components([kind], ref_template=ref_template)
    properties = components[kind.__name__]["properties"]
    found = []
    for entry in info.fields:
        schema = dict(properties[entry.encode_name])
        description = schema.pop("description", "")
        extra = field_extra(entry.type)
        default = entry.default
        if default is NODEFAULT and entry.default_factory is not NODEFAULT:
            default = entry.default_factory()
        found.append(
            Param(
                name=entry.encode_name,
                required=entry.required,
                default=default,
                description=description,
                schema=schema,
                hint=bool(extra.get("hint")),
                only=extra.get("only"),
            )
        )
    return sorted(found, key=lambda param: param.name == "tgt_name")


def components_of(kinds: list[Any], ref_template: str = "#/components/schemas/{name}") -> dict[str, Any]:
    """JSON Schemas of the structs that occur inside parameters."""
    _, components = msgspec.json.schema_components(kinds, ref_template=ref_template)
    tops = {kind.__name__ for kind in kinds if isinstance(kind, type)}
    return {name: schema for name, schema in sorted(components.items()) if name not in tops}
