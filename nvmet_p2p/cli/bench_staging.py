"""``nvmet-p2p bench --staging host,cmb``: the same load with a namespace's data resting here and there in turn."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

from nvmet_p2p.cli.bench_tool import BenchError

HOST = "host"
CMB = "cmb"


class Caller(Protocol):
    """What is used of :class:`nvmet_p2p.cli.client.RpcClient`."""

    def call(self, method: str, params: Any = None) -> Any: ...


class Switch:
    """Sets the staging policy of a namespace before each run; afterwards the namespace has the one that it had.

    Places are ``host``, ``cmb`` (the provider chosen for the namespace, or else the only one there is), or a pool.
    A pool is set ``strict``, so that a run measures it or fails.
    """

    def __init__(self, client: Caller, nqn: str, nsid: int) -> None:
        self._client = client
        self._place = {"nqn": nqn, "nsid": nsid}
        self._before: dict[str, Any] = {}
        self._cmb = ""

    def __enter__(self) -> Switch:
        namespaces = self._client.call("p2p_get_staging", self._place)
        paths = namespaces[0]["paths"] if namespaces else []
        if not paths:
            raise BenchError(f"there is no namespace {self._place['nsid']} in {self._place['nqn']}, or no listener")
        own = paths[0]["policy_of"] == "namespace"
        mode = "strict" if paths[0]["strict"] else "prefer"
        self._before = {"policy": paths[0]["policy"], "mode": mode} if own else {"policy": "inherit"}
        self._cmb = paths[0]["write"] or paths[0]["read"] or ""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.call("p2p_set_staging", self._place | self._before)

    def to(self, place: str) -> None:
        """Moves the namespace. Raises what the daemon says where the pool cannot be used."""
        policy = "off" if place == HOST else self._provider() if place == CMB else place
        mode = "prefer" if place == HOST else "strict"
        self._client.call("p2p_set_staging", {**self._place, "policy": policy, "mode": mode})

    def _provider(self) -> str:
        if not self._cmb:
            usable = [entry["bdf"] for entry in self._client.call("p2p_get_providers") if entry["usable"]]
            if len(usable) != 1:
                raise BenchError(f"cmb: {len(usable)} providers can be used here; name one: {', '.join(usable)}")
            self._cmb = usable[0]
        return self._cmb
