"""A target, its effects, and hosts that talk to it: no socket, no clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from nvmet_p2p.target.config import (
    BdevConfig,
    BdevFacts,
    HostConfig,
    ListenAddress,
    ListenerConfig,
    NamespaceConfig,
    SubsystemConfig,
    TargetConfig,
    TransportConfig,
)
from nvmet_p2p.target.controller import Controller
from nvmet_p2p.target.effects import Effect
from nvmet_p2p.target.queue import Completed, Request
from nvmet_p2p.target.target import Target
from nvmet_p2p.target.validate import DISCOVERY_NQN
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.fabrics import ConnectCommand, ConnectData, PropertyGet, PropertySet
from nvmet_p2p.wire.spec import AdminOpcode, PropertyOffset
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import AbortCommand, GetFeaturesCommand, GetLogPageCommand, IdentifyCommand

HERE: Final = ListenAddress(trtype="TCP", adrfam="IPv4", traddr="192.0.2.1", trsvcid="4420")
THERE: Final = ListenAddress(trtype="TCP", adrfam="IPv6", traddr="2001:db8::1", trsvcid="4421")
DISC: Final = ListenAddress(trtype="TCP", adrfam="IPv4", traddr="192.0.2.1", trsvcid="8009")
PEER: Final = ("198.51.100.7", "40000")
NQN: Final = "nqn.2026-11.com.example:one"
OTHER_NQN: Final = "nqn.2026-11.com.example:two"
ALICE: Final = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-4111-8111-111111111111"
BOB: Final = "nqn.2014-08.org.nvmexpress:uuid:22222222-2222-4222-8222-222222222222"
HOSTID: Final = bytes(range(1, 17))
ENABLE: Final = 0x00460001
SHUTDOWN: Final = ENABLE | 1 << 14


replace = msgspec.structs.replace


def namespace(nsid: int, bdev: str | None = None, **changes: Any) -> NamespaceConfig:
    fields: dict[str, Any] = {
        "nsid": nsid,
        "bdev_name": bdev or f"disk{nsid}",
        "uuid": f"00000000-0000-4000-8000-{nsid:012x}",
        "anagrpid": nsid,
    }
    return NamespaceConfig(**(fields | changes))


def facts(name: str, **changes: Any) -> BdevFacts:
    fields: dict[str, Any] = {"name": name, "block_size": 512, "num_blocks": 2048}
    return BdevFacts(**(fields | changes))


def subsystem(
    nqn: str = NQN, *nss: NamespaceConfig, listeners: Iterable[ListenAddress] = (HERE,), **changes: Any
) -> SubsystemConfig:
    fields: dict[str, Any] = {
        "nqn": nqn,
        "serial_number": "SN1",
        "allow_any_host": True,
        "namespaces": {ns.nsid: ns for ns in nss},
        "listeners": tuple(ListenerConfig(address=address) for address in listeners),
    }
    return SubsystemConfig(**(fields | changes))


def hosts(*nqns: str) -> dict[str, HostConfig]:
    return {nqn: HostConfig(nqn=nqn) for nqn in nqns}


def config(*subsystems: SubsystemConfig, transport: dict[str, Any] | None = None, **changes: Any) -> TargetConfig:
    names = {ns.bdev_name for sub in subsystems for ns in sub.namespaces.values()}
    fields: dict[str, Any] = {
        "transports": {"TCP": TransportConfig(trtype="TCP", **(transport or {}))},
        "subsystems": {sub.nqn: sub for sub in subsystems},
        "bdevs": {name: BdevConfig(name=name, kind="null", uuid="") for name in sorted(names)},
    }
    return TargetConfig(**(fields | changes))


class World:
    """A target with everything that it asked for."""

    def __init__(self, cfg: TargetConfig | None = None) -> None:
        self.effects: list[Effect] = []
        self.activity: dict[int, int] = {}
        self.now = 100.0
        cfg = cfg or config(subsystem(NQN, namespace(1), namespace(2)))
        self.target = Target(cfg, self.effects.append, now=self.now, io_activity=lambda key: self.activity.get(key, 0))
        for name in cfg.bdevs:
            self.target.set_bdev(name, facts(name), self.now)

    def of(self, kind: type[Any]) -> list[Any]:
        """The effects of one kind so far."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def apply(self, cfg: TargetConfig) -> None:
        self.target.apply(cfg, self.now)

    def change(self, nqn: str = NQN, **changes: Any) -> None:
        """Changes one subsystem."""
        cfg = self.target.config
        changed = replace(cfg.subsystems[nqn], **changes)
        self.apply(replace(cfg, subsystems={**cfg.subsystems, nqn: changed}))

    def advance(self, seconds: float) -> None:
        """Time passes; every deadline on the way is served at its time."""
        end = self.now + seconds
        while (due := self.target.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.target.handle_timer(self.now)
        self.now = end

    def host(self, listener: ListenAddress = HERE) -> Host:
        return Host(self, listener)

    def connected(self, nqn: str = NQN, listener: ListenAddress = HERE, **params: Any) -> Host:
        """A host after the admin Connect."""
        host = self.host(listener)
        cqe = host.connect(nqn, **params)
        assert cqe.ok, f"Connect: {cqe.status:#x}"
        return host

    def started(self, nqn: str = NQN, listener: ListenAddress = HERE, **params: Any) -> Host:
        """A host with an enabled controller."""
        host = self.connected(nqn, listener, **params)
        assert host.set_cc(ENABLE).ok
        assert host.csts & 1
        return host

    def discovery(self, listener: ListenAddress = HERE, **params: Any) -> Host:
        return self.started(DISCOVERY_NQN, listener, **params)


class Host:
    """The host's end of one queue."""

    def __init__(self, world: World, listener: ListenAddress) -> None:
        self.world = world
        self.queue = world.target.open_queue(listener, PEER, world.now)
        self.queue.on_completion = self._completed
        self.done: list[Completed] = []
        self.cid = 0

    def _completed(self, completed: Completed) -> None:
        self.done.append(completed)

    @property
    def controller(self) -> Controller:
        assert self.queue.controller is not None
        return self.queue.controller

    def submit(self, sqe: Sqe, data: bytes = b"") -> Request:
        """Sends a command; its completion, if any yet, is the last of ``done``."""
        request = self.queue.prepare(sqe, self.world.now)
        if request.error is not None:
            self.queue.fail(request, request.error, self.world.now)
        else:
            self.queue.execute(request, data, self.world.now)
        return request

    def command(self, sqe: Sqe, data: bytes = b"") -> Completed:
        """Sends a command that completes at once."""
        self.cid = (self.cid + 1) & 0xFFFF
        before = len(self.done)
        request = self.submit(dataclasses.replace(sqe, cid=self.cid), data)
        assert len(self.done) == before + 1, "completes exactly once, at once"
        done = self.done[-1]
        assert done.request is request
        assert done.cqe.cid == self.cid
        return done

    def connect(
        self,
        subnqn: str | bytes = NQN,
        *,
        hostnqn: str | bytes = ALICE,
        hostid: bytes = HOSTID,
        cntlid: int = 0xFFFF,
        **params: Any,
    ) -> Cqe:
        names: dict[str, Any] = {
            "subnqn_raw": subnqn.encode() if isinstance(subnqn, str) else subnqn,
            "hostnqn_raw": hostnqn.encode() if isinstance(hostnqn, str) else hostnqn,
        }
        sqe = ConnectCommand(**({"sqsize": 31} | params)).sqe()
        return self.command(sqe, ConnectData(hostid=hostid, cntlid=cntlid, **names).build()).cqe

    def io(self, qid: int = 1, **params: Any) -> Host:
        """An I/O Connect for this host's controller on a new queue; see ``done`` of what comes back."""
        other = Host(self.world, params.pop("listener", self.queue.listener))
        controller = self.controller
        options: dict[str, Any] = {"hostnqn": controller.hostnqn, "cntlid": controller.cntlid, "qid": qid}
        other.connect(params.pop("subnqn", controller.subnqn), **(options | params))
        return other

    def get(self, offset: int, size: int = 4) -> int:
        done = self.command(PropertyGet(ofst=offset, attrib=size == 8).sqe()).cqe
        assert done.ok
        return done.result64

    def set_cc(self, value: int) -> Cqe:
        return self.command(PropertySet(ofst=PropertyOffset.CC, value=value).sqe()).cqe

    @property
    def csts(self) -> int:
        return self.get(PropertyOffset.CSTS)

    def identify(self, cns: int, nsid: int = 0, **fields: Any) -> Completed:
        return self.command(Sqe(opc=AdminOpcode.IDENTIFY, nsid=nsid, **IdentifyCommand(cns=cns, **fields).dwords()))

    def log(self, lid: int, length: int, offset: int = 0, nsid: int = 0, **fields: Any) -> Completed:
        numd = length // 4 - 1
        view = GetLogPageCommand(lid=lid, numdl=numd & 0xFFFF, numdu=numd >> 16, lpo=offset, **fields)
        return self.command(Sqe(opc=AdminOpcode.GET_LOG_PAGE, nsid=nsid, **view.dwords()))

    def get_feature(self, fid: int, cdw11: int = 0, nsid: int = 0, sel: int = 0) -> Completed:
        view = GetFeaturesCommand(fid=fid, sel=sel, cdw11=cdw11)
        return self.command(Sqe(opc=AdminOpcode.GET_FEATURES, nsid=nsid, **view.dwords()))

    def set_feature(self, fid: int, cdw11: int = 0, data: bytes = b"", nsid: int = 0, save: bool = False) -> Cqe:
        sqe = Sqe(opc=AdminOpcode.SET_FEATURES, nsid=nsid, cdw10=fid | save << 31, cdw11=cdw11)
        return self.command(sqe, data).cqe

    def aer(self, cid: int) -> None:
        """An Asynchronous Event Request; its completion comes into ``done`` some time."""
        self.submit(Sqe(opc=AdminOpcode.ASYNC_EVENT_REQUEST, cid=cid))

    def abort(self, sqid: int, cid: int) -> Sqe:
        return Sqe(opc=AdminOpcode.ABORT, cid=0x7F00, **AbortCommand(sqid=sqid, cid=cid).dwords())

    def events(self) -> list[int]:
        """Dword 0 of the events that have come."""
        return [
            done.cqe.dw0
            for done in self.done
            if done.request.sqe.opc == AdminOpcode.ASYNC_EVENT_REQUEST and done.cqe.ok
        ]
