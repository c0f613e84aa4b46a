"""A configuration under change, for the tests of operations."""

from __future__ import annotations

from typing import Any

import pytest

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import SubsystemConfig, TargetConfig
from nvmet_p2p.target.operations_bdev import OPERATIONS, with_uuid
from nvmet_p2p.target.request_types import decode

NQN = "nqn.2026-11.com.example:one"


class Config:
    """A configuration under change, and the answers."""

    def __init__(self) -> None:
        self.value = TargetConfig()
        self._uuids = 0

    def _uuid(self) -> str:
        self._uuids += 1
        return f"00000000-0000-4000-8000-{self._uuids:012x}"

    def do(self, method: str, **params: Any) -> Any:
        operation = OPERATIONS[method]
        change = operation.apply(self.value, with_uuid(decode(operation.request, params), self._uuid))
        self.value = change.config
        return change.result

    def refused(self, code: int, text: str, method: str, **params: Any) -> None:
        """The call is refused with this code and a message that has ``text`` in it; nothing changes."""
        before = self.value
        with pytest.raises(OperatorError) as caught:
            self.do(method, **params)
        assert (caught.value.code, text in caught.value.message) == (code, True), caught.value
        assert self.value is before

    @property
    def one(self) -> SubsystemConfig:
        return self.value.subsystems[NQN]


def typical() -> Config:
    """A transport, a subsystem with ANA, three bdevs."""
    made = Config()
    made.do("nvmf_create_transport", trtype="tcp")
    made.do("nvmf_create_subsystem", nqn=NQN, ana_reporting=True, max_namespaces=4)
    for name in ("m0", "m1", "m2"):
        made.do("bdev_malloc_create", name=name, block_size=512, num_blocks=8)
    return made
