"""An independent judge: what we build, dissected by Wireshark's NVMe/TCP dissector, field by field.

A whole conversation is written as a pcap file: two queues, both with and without each digest. Structures are filled
with a pattern in which every field differs from its neighbours, and compared with the bytes that tshark believes to be
the field, so that a wrong offset cannot hide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import google_crc32c
import pytest

from nvmet_p2p.wire.codec import Wire
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.discovery import DiscoveryEntry, DiscoveryLog, RdmaTsas
from nvmet_p2p.wire.fabrics import (
    AuthRecv,
    AuthSend,
    ConnectCommand,
    ConnectData,
    ConnectSuccess,
    Disconnect,
    PropertyGet,
    PropertySet,
)
from nvmet_p2p.wire.features import NumberOfQueues
from nvmet_p2p.wire.identify import IdentifyController, IdentifyNamespace, NamespaceList
from nvmet_p2p.wire.logpages import (
    AnaGroup,
    AnaLog,
    CommandEffects,
    CommandsSupportedLog,
    EnduranceGroupLog,
    ErrorInformationEntry,
    FirmwareRevision,
    FirmwareSlotLog,
    SmartLog,
)
from nvmet_p2p.wire.nvm import DsmCommand, DsmRange, ReadWriteCommand
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import AdminOpcode, Cns, FeatureId, LogPage, NvmOpcode, PduFlag, PduType, Psdt, Status
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.tcp_pdu import R2T, C2HData, CapsuleCmd, CapsuleResp, CommonHeader, H2CData, IcReq, IcResp, TermReq
from nvmet_p2p.wire.views import GetLogPageCommand, IdentifyCommand, SetFeaturesCommand
from tests.support.pcap import Conversation, Packet, dissect, write_pcap
from tests.support.wire_values import declared, pattern

CHECK_DIGESTS: Final = ("-o", "nvme-tcp.check_hdgst:TRUE", "-o", "nvme-tcp.check_ddgst:TRUE")
DIGEST_GOOD: Final = 1
SUBNQN: Final = "nqn.2014-08.org.nvmexpress:uuid:5a5a5a5a-0000-0000-0000-000000000001"
HOSTNQN: Final = "nqn.2014-08.org.nvmexpress:uuid:c3c3c3c3-0000-0000-0000-000000000002"
SHORT: Final = ("sanicap",)
Check = Callable[[Packet], None]


@dataclass
class Script:
    """A conversation under way and, for each PDU, what tshark must say of it."""

    hdgst: bool
    ddgst: bool
    wire: Conversation
    checks: list[tuple[str, Check]] = field(default_factory=list)

    def send(self, header: Any, data: bytes = b"", *checks: Check, **numbers: int) -> None:
        """Frame a PDU with digests as negotiated, send it, and check header, digests, ``checks`` and ``numbers``."""
        from_host = header.pdu_type in (PduType.CAPSULE_CMD, PduType.H2C_DATA)
        has_ddgst = self.ddgst and bool(data)
        flags = header.flags | (PduFlag.HDGST if self.hdgst else 0) | (PduFlag.DDGST if has_ddgst else 0)
        pdo = header.hlen + 4 * self.hdgst
        header = dataclasses.replace(header, flags=flags, pdo=pdo if data else 0, plen=pdo + len(data) + 4 * has_ddgst)
        octets = header.build()
        if self.hdgst:
            octets += google_crc32c.value(octets).to_bytes(4, "little")
        octets += data
        if has_ddgst:
            octets += google_crc32c.value(data).to_bytes(4, "little")
        self.raw(from_host, octets, header, self._digests(has_ddgst), *checks, **numbers)

    def raw(self, from_host: bool, octets: bytes, header: Any, *checks: Check, **numbers: int) -> None:
        """Send bytes as they are and check the common header, ``checks`` and ``numbers``."""
        (self.wire.host if from_host else self.wire.target)(octets)
        expected = {
            "nvme-tcp.type": header.pdu_type,
            "nvme-tcp.flags": header.flags,
            "nvme-tcp.hlen": header.hlen,
            "nvme-tcp.pdo": header.pdo,
            "nvme-tcp.plen": header.plen,
            **{name.replace("__", ".").replace("nvme_tcp", "nvme-tcp"): value for name, value in numbers.items()},
        }

        def check(packet: Packet) -> None:
            for name, value in expected.items():
                assert packet.number(name) == value, name
            for one in checks:
                one(packet)

        self.checks.append((f"{type(header).__name__} {numbers}", check))

    def _digests(self, has_ddgst: bool) -> Check:
        def check(packet: Packet) -> None:
            for present, name in ((self.hdgst, "hdgst"), (has_ddgst, "ddgst")):
                seen = [int(item.show) for item in packet.all(f"nvme-tcp.{name}.status")]
                assert seen == ([DIGEST_GOOD] if present else []), name

        return check

    def command(self, sqe: Sqe, data: bytes, *checks: Check, **numbers: int) -> None:
        """A command capsule."""
        self.send(CapsuleCmd(sqe=sqe.build()), data, *checks, **numbers)

    def response(self, cqe: Cqe, *checks: Check, **numbers: int) -> None:
        """A response capsule; what every CQE shows is checked."""
        common = {
            "nvme__cqe__sqhd": cqe.sqhd,
            "nvme__cqe__sqid": cqe.sqid,
            "nvme__cqe__cid": cqe.cid,
            "nvme__cqe__status__sc": cqe.status & 0xFF,
            "nvme__cqe__status__sct": cqe.status >> 8,
            "nvme__cqe__status__crd": cqe.crd,
            "nvme__cqe__status__m": int(cqe.more),
            "nvme__cqe__status__dnr": int(cqe.dnr),
        }
        self.send(CapsuleResp(cqe=cqe.build()), b"", *checks, **common, **numbers)

    def read(self, sqe: Sqe, data: bytes, *checks: Check, **numbers: int) -> None:
        """A command whose data come in one C2HData, and its response; ``checks`` are made on the data."""
        self.command(sqe, b"", **numbers)
        header = C2HData(flags=PduFlag.LAST_PDU, cccid=sqe.cid, datal=len(data))
        self.send(header, data, *checks, **_data_numbers(header))
        self.response(Cqe(sqhd=sqe.cid, cid=sqe.cid))


def _data_numbers(header: C2HData | H2CData) -> dict[str, int]:
    return {
        "nvme_tcp__cmd__cid": header.cccid,
        "nvme_tcp__data__offset": header.datao,
        "nvme_tcp__data__length": header.datal,
        "nvme_tcp__flags__pdu__data_last": int(bool(header.flags & PduFlag.LAST_PDU)),
        "nvme_tcp__flags__pdu__data_success": int(bool(header.flags & PduFlag.SUCCESS)),
    }


def same_fields(value: Wire, prefix: str, names: dict[str, str], unknown: str = "", nth: int = 0) -> Check:
    """Every field of ``value`` has the bytes that tshark shows under ``prefix`` and its name, or the name in ``names``.

    ``unknown`` lists the fields that this tshark does not know; nothing else is left out. ``SHORT`` are fields of which
    Wireshark 4.0 shows the first half only.
    """
    data = value.build()

    def check(packet: Packet) -> None:
        for name, spec in declared(type(value)):
            if name in unknown.split():
                continue
            seen = packet.all(f"{prefix}.{names.get(name, name)}")
            assert len(seen) > nth, f"{name} not shown"
            found = seen[nth].value
            assert found is not None, name
            assert found[: spec.size] == data[spec.offset : spec.offset + len(found)], name
            assert len(found) == spec.size // (1 + (name in SHORT)) or spec.count, f"{name} has {len(found)} bytes"

    return check


def in_order(cls: type[Wire], names: str) -> dict[str, str]:
    """tshark's names of all the fields of a structure, in order."""
    return dict(zip((name for name, _ in declared(cls)), names.split(), strict=True))


def admin(opc: int, cid: int, length: int, nsid: int = 0, **dwords: int) -> Sqe:
    """An admin command that gets ``length`` bytes by a transport data block."""
    psdt = Psdt.SGL_MPTR_CONTIGUOUS
    return Sqe(opc=opc, cid=cid, nsid=nsid, psdt=psdt, dptr=SglDescriptor.transport(length).build(), **dwords)


def initialize(script: Script, name: str = "") -> None:
    """ICReq and ICResp, never with digests."""
    dgst = script.hdgst | script.ddgst << 1
    request = IcReq(hpda=3, dgst=dgst, maxr2t=0x01020304)
    script.raw(
        True,
        request.build(),
        request,
        nvme_tcp__icreq__pfv=0,
        nvme_tcp__icreq__hpda=3,
        nvme_tcp__icreq__digest=dgst,
        nvme_tcp__icreq__maxr2t=0x01020304,
    )
    response = IcResp(cpda=2, dgst=dgst, maxh2cdata=0x05060708)
    script.raw(
        False,
        response.build(),
        response,
        nvme_tcp__icresp__pfv=0,
        nvme_tcp__icresp__cpda=2,
        nvme_tcp__icresp__digest=dgst,
        nvme_tcp__icresp__maxdata=0x05060708,
    )


def connect(script: Script, qid: int) -> None:
    """Connect with its data in the capsule, and its response."""
    command = ConnectCommand(
        cid=7, qid=qid, sqsize=0x0A0B, cattr=0x0C, kato=0x01020304, dptr=SglDescriptor.in_capsule(1024).build()
    )
    data = ConnectData(hostid=bytes(range(1, 17)), cntlid=0xFFFF - qid, subnqn=SUBNQN, hostnqn=HOSTNQN)
    prefix = "nvme.fabrics.cmd.connect"
    script.command(
        command.sqe(),
        data.build(),
        same_fields(command, prefix, {}, "opc fuse psdt cid fctype dptr"),
        same_fields(data, f"{prefix}.data", {"cntlid": "cntrlid", "subnqn_raw": "subnqn", "hostnqn_raw": "hostnqn"}),
        shows(f"{prefix}.data.subnqn", SUBNQN),
        shows(f"{prefix}.data.hostnqn", HOSTNQN),
        nvme__fabrics__cmd__cid=7,
        nvme__fabrics__cmd__fctype=1,
        nvme__cmd__sgl__type=0,
        nvme__cmd__sgl__subtype=1,
        nvme__cmd__sgl1__len=1024,
    )
    script.response(
        Cqe(dw0=ConnectSuccess(cntlid=0x1122, authreq=2).dw0, cid=7, sqhd=1),
        nvme__fabrics__cqe__connect__cntrlid=0x1122,
        nvme__fabrics__cqe__connect__authreq=2,
    )


def shows(name: str, text: str, nth: int = 0) -> Check:
    """The display text of a field."""

    def check(packet: Packet) -> None:
        assert packet.all(name)[nth].show == text

    return check


def octets(name: str, value: bytes) -> Check:
    """The bytes of a field."""

    def check(packet: Packet) -> None:
        assert [seen.value for seen in packet.all(name)] == [value]

    return check


def other_fabrics_commands(script: Script) -> None:
    """Properties, authentication, Disconnect."""
    prefix = "nvme.fabrics.cmd.prop_get_set"
    common = "opc fuse psdt cid fctype dptr"
    get = PropertyGet(cid=1, attrib=1)
    script.command(get.sqe(), b"", same_fields(get, prefix, {"ofst": "offset"}, common))
    cap = 0x0020_0020_0F01_007F
    script.response(Cqe(dw0=cap & 0xFFFFFFFF, dw1=cap >> 32, cid=1), nvme__fabrics__prop_get__ccap__mqes=0x7F)
    put = PropertySet(cid=2, ofst=0x14, value=0x0046_0001)
    script.command(
        put.sqe(),
        b"",
        same_fields(put, prefix, {"ofst": "offset"}, f"{common} value"),
        nvme__fabrics__prop_get_set__cc__en=1,
        nvme__fabrics__prop_get_set__cc__iosqes=6,
        nvme__fabrics__prop_get_set__cc__iocqes=4,
    )
    script.response(Cqe(cid=2))
    status = PropertyGet(cid=3, ofst=0x1C)
    script.command(status.sqe(), b"", same_fields(status, prefix, {"ofst": "offset"}, common))
    script.response(Cqe(dw0=1, cid=3), nvme__fabrics__prop_get_set__csts__rdy=1)
    send = AuthSend(cid=4, tl=16, dptr=SglDescriptor.in_capsule(16).build())
    auth = "nvme.fabrics.cmd.auth"
    script.command(send.sqe(), bytes(16), same_fields(send, auth, {"tl": "al"}, common))
    script.response(Cqe(cid=4, status=Status.AUTH_REQUIRED, dnr=True, more=True, crd=2))
    receive = AuthRecv(cid=5, al=0x01020304, dptr=SglDescriptor.transport(32).build())
    script.command(receive.sqe(), b"", same_fields(receive, auth, {}, common))
    script.response(Cqe(cid=5, status=Status.INVALID_FIELD, sqid=0))
    leave = Disconnect(cid=6, recfmt=0x0102)
    script.command(leave.sqe(), b"", same_fields(leave, "nvme.fabrics.cmd.disconnect", {}, common))
    script.response(Cqe(cid=6))


def identify(script: Script) -> None:
    """Identify Controller, Namespace and the list of namespaces."""
    view = IdentifyCommand(cns=Cns.CONTROLLER, cntid=0x0102)
    controller = pattern(IdentifyController, subnqn=SUBNQN)
    prefix = "nvme.cmd.identify.ctrl"
    fabric = {name: f"nvmeof.{name}" for name in ("ioccsz", "iorcsz", "icdoff", "fcatt", "msdbd", "ofcs")}
    script.read(
        admin(AdminOpcode.IDENTIFY, 1, 4096, **view.dwords()),
        controller.build(),
        same_fields(
            controller,
            prefix,
            {
                "nvmsr": "mi.nvmsr",
                "vwci": "mi.vwci",
                "mec": "mi.mec",
                "hmminds": "hmmminds",
                "icsvscc": "nvscc",
                "psd": "psds",
                **fabric,
            },
            # of Base 2.0 and later
            "bpcap nssl plsi crcap ciu cirn domainid kpioc mptfawr megcap tmpthha cqt ocfs maxdna maxcna oaqd dctype",
        ),
        shows(f"{prefix}.subnqn", SUBNQN),
        nvme__cmd__identify__dword10__cns=1,
        nvme__cmd__identify__dword10__cntid=0x0102,
    )
    namespace = pattern(IdentifyNamespace)
    script.read(
        admin(AdminOpcode.IDENTIFY, 2, 4096, nsid=5, **IdentifyCommand(cns=Cns.NAMESPACE).dwords()),
        namespace.build(),
        same_fields(
            namespace,
            "nvme.cmd.identify.ns",
            {"lbaf": "lbafs"},
            "rescap fpi dlfeat nawun nawupf nacwu nabsn nabo nabspf noiob nvmcap npwg npwa npdg npda nows mssrl mcl "
            "msrc kpios nulbaf kpiodaag anagrpid nsattr nvmsetid endgid lbaf",
        ),
        nvme__cmd__nsid=5,
    )
    listed = NamespaceList((1, 2, 0x01020304))

    def nsids(packet: Packet) -> None:
        seen = [int(item.show, 0) for item in packet.all("nvme.cmd.identify.nslist.nsid")]
        assert tuple(nsid for nsid in seen if nsid) == listed.nsids

    command = admin(AdminOpcode.IDENTIFY, 3, 4096, **IdentifyCommand(cns=Cns.ACTIVE_NAMESPACES).dwords())
    script.read(command, listed.build(), nsids)


def log_page(cid: int, lid: int, length: int) -> Sqe:
    """Get Log Page of a whole page."""
    numd = length // 4 - 1
    return admin(AdminOpcode.GET_LOG_PAGE, cid, length, **GetLogPageCommand(lid=lid, numdl=numd).dwords())


def discovery_log(script: Script) -> None:
    """Log page 70h with a TCP and an RDMA entry."""
    prefix = "nvme.cmd.get_logpage.identify"
    tcp = pattern(DiscoveryEntry, trtype=3, treq=3, tsas=b"\x02" + bytes(255), subnqn=SUBNQN)
    rdma = pattern(DiscoveryEntry, trtype=1, tsas=RdmaTsas(2, 3, 1, 0x0405).build(), traddr="10.1.2.3")
    page = DiscoveryLog(0x0102030405060708, (tcp, rdma))
    data = page.build()
    script.read(
        log_page(9, LogPage.DISCOVERY, len(data)),
        data,
        *[same_fields(entry, f"{prefix}.rcrd", {}, "eflags tsas", nth) for nth, entry in enumerate((tcp, rdma))],
        shows(f"{prefix}.rcrd.subnqn", SUBNQN),
        nvme__cmd__get_logpage__dword10__id=0x70,
        nvme__cmd__get_logpage__dword10__numdl=len(data) // 4 - 1,
    )
    tsas = f"{prefix}.rcrd.tsas"

    def check(packet: Packet) -> None:
        assert packet.number(f"{prefix}.genctr") == page.genctr
        assert packet.number(f"{prefix}.numrec") == 2
        assert packet.number(f"{tsas}.tcp_sectype") == 2
        assert packet.number(f"{tsas}.rdma_qptype") == 2
        assert packet.number(f"{tsas}.rdma_prtype") == 3
        assert packet.number(f"{tsas}.rdma_pkey") == 0x0405

    _also(script, -2, check)


def _also(script: Script, index: int, check: Check) -> None:
    """One more check of a PDU that is already in the script."""
    name, first = script.checks[index]

    def both(packet: Packet) -> None:
        first(packet)
        check(packet)

    script.checks[index] = (name, both)


def log_pages(script: Script) -> None:
    """The log pages that tshark knows."""
    prefix = "nvme.cmd.get_logpage"
    error = pattern(ErrorInformationEntry)
    script.read(
        log_page(1, LogPage.ERROR_INFORMATION, 128),
        error.build() + bytes(64),  # Wireshark 4.0 reads two bytes beyond the first entry's end
        same_fields(
            error,
            f"{prefix}.errinf",
            {
                "error_count": "errcnt",
                "status_field": "sf",
                "error_location": "pel",
                "vsia": "vsi",
                "trtype": "trype",
                "command_specific": "csi",
                "transport_specific": "tsi",
            },
            "csi opc lpver",
        ),
    )
    smart = pattern(SmartLog)
    names = "cw ct asc ast lae egcws dur duw hrc hwc cbt pc poh us mie ele wctt cctt ts tmt1c tmt2c tmt1t tmt2t"
    script.read(
        log_page(2, LogPage.SMART_HEALTH, 512),
        smart.build(),
        same_fields(smart, f"{prefix}.smart", in_order(SmartLog, names)),
    )
    slots = FirmwareSlotLog(2, 5, tuple(FirmwareRevision(f"rev{number}") for number in range(1, 8)))
    script.read(
        log_page(3, LogPage.FIRMWARE_SLOT, 512),
        slots.build(),
        *[octets(f"{prefix}.fw_slot.frs.s{slot}", f"rev{slot}    ".encode()) for slot in range(1, 8)],
        shows(f"{prefix}.fw_slot.afi.afs", "0x02"),
        shows(f"{prefix}.fw_slot.afi.nfs", "0x05"),
    )
    group = pattern(EnduranceGroupLog)
    names = "cw x as ast pu x ee dur duw muw hrc hwc mdie ele x x"
    script.read(
        log_page(4, LogPage.ENDURANCE_GROUP, 512),
        group.build(),
        same_fields(
            group,
            f"{prefix}.egroup",
            in_order(EnduranceGroupLog, names),
            "egfeat domainid tegcap uegcap",
        ),
    )
    effects = CommandEffects(csupp=True, ccc=True, cse=5, uss=True)
    table = CommandsSupportedLog.of({0x02: effects}, {0x01: CommandEffects(csupp=True, lbcc=True)})
    script.read(log_page(5, LogPage.COMMANDS_SUPPORTED, 4096), table.build(), _effects(f"{prefix}.cmd_and_eff.cs"))
    ana = AnaLog(0x0102030405060708, (AnaGroup(0x11, 3, 0x21, (0x31, 0x32)), AnaGroup(0x12, 0xF, 0x22, (0x33,))))
    data = ana.build()
    script.read(log_page(6, LogPage.ANA, len(data)), data, _ana(ana))


def _effects(name: str) -> Check:
    """Of 512 dwords, one admin and one I/O one are as built, all others 0.

    Wireshark 4.0 takes the I/O commands to start at byte 1028, where the specification (and SPDK, and nvme-cli) has
    1024: it shows I/O opcode 1 as the first.
    """

    def check(packet: Packet) -> None:
        seen = [int.from_bytes(item.value or b"", "little") for item in packet.all(name)]
        assert seen[0x02] == 0x000D_0011
        assert seen[256 + 0x01 - 1] == 0x3
        assert sum(map(bool, seen)) == 2

    return check


def _ana(page: AnaLog) -> Check:
    prefix = "nvme.cmd.get_logpage.ana"

    def numbers(packet: Packet, name: str) -> list[int]:
        return [int(item.show, 0) for item in packet.all(f"{prefix}.{name}")]

    def check(packet: Packet) -> None:
        assert numbers(packet, "chcnt") == [page.chgcnt]
        assert numbers(packet, "ngd") == [len(page.groups)]
        assert numbers(packet, "grp.id") == [group.agid for group in page.groups]
        assert numbers(packet, "grp.chcnt") == [group.chgcnt for group in page.groups]
        assert numbers(packet, "grp.nns") == [len(group.nsids) for group in page.groups]
        assert numbers(packet, "grp.anas.state") == [group.state for group in page.groups]
        assert numbers(packet, "grp.nsid") == [nsid for group in page.groups for nsid in group.nsids]

    return check


def features(script: Script) -> None:
    """Set Features, Number of Queues."""
    wanted = NumberOfQueues(nsq=3, ncq=5)
    view = SetFeaturesCommand(fid=FeatureId.NUMBER_OF_QUEUES, sv=True, cdw11=wanted.value)
    script.command(
        admin(AdminOpcode.SET_FEATURES, 1, 0, **view.dwords()),
        b"",
        nvme__cmd__set_features__dword10__fid=7,
        nvme__cmd__set_features__dword10__sv=1,
        nvme__cmd__set_features__dword11__nq__nsqr=3,
        nvme__cmd__set_features__dword11__nq__ncqr=5,
    )
    script.response(
        Cqe(dw0=wanted.value, cid=1),
        nvme__cqe__dword0__set_features__nq__nsqa=3,
        nvme__cqe__dword0__set_features__ncqa=5,
    )


def io(script: Script) -> None:
    """Write by R2T and two H2CData, write in the capsule, read by C2HData with SUCCESS, Dataset Management."""
    view = ReadWriteCommand(slba=0x0102030405060708, nlb=7, fua=True)
    write = Sqe(opc=NvmOpcode.WRITE, cid=9, nsid=2, psdt=1, dptr=SglDescriptor.transport(4096).build(), **view.dwords())
    common = {"nvme__cmd__opc": 1, "nvme__cmd__cid": 9, "nvme__cmd__nsid": 2}
    blocks = {"nvme__cmd__slba": view.slba, "nvme__cmd__nlb": view.blocks}
    sgl = {"nvme__cmd__sgl__type": 5, "nvme__cmd__sgl__subtype": 0xA}
    script.command(write, b"", **common, **blocks, **sgl)
    grant = R2T(cccid=9, ttag=0x0304, r2to=0, r2tl=4096)
    script.send(grant, nvme_tcp__cmd__cid=9, nvme_tcp__ttag=0x0304, nvme_tcp__r2t__offset=0, nvme_tcp__r2t__length=4096)
    for offset in (0, 2048):
        part = H2CData(cccid=9, ttag=0x0304, datao=offset, datal=2048, flags=PduFlag.LAST_PDU if offset else 0)
        script.send(part, bytes([offset >> 8]) * 2048, nvme_tcp__ttag=0x0304, **_data_numbers(part))
    script.response(Cqe(cid=9, sqhd=2, sqid=1))
    inline = dataclasses.replace(write, cid=10, dptr=SglDescriptor.in_capsule(512).build())
    script.command(inline, b"i" * 512, nvme__cmd__cid=10, nvme__cmd__sgl1__len=512)
    script.response(Cqe(cid=10, sqhd=3, sqid=1, status=Status.LBA_OUT_OF_RANGE, dnr=True))
    script.command(dataclasses.replace(write, opc=NvmOpcode.READ, cid=11), b"", nvme__cmd__opc=2, **blocks)
    for offset in (0, 2048):
        flags = PduFlag.LAST_PDU | PduFlag.SUCCESS if offset else 0
        answer = C2HData(cccid=11, datao=offset, datal=2048, flags=flags)
        script.send(answer, b"r" * 2048, **_data_numbers(answer))
    ranges = DsmRange(nlb=8, slba=64).build()
    dsm = Sqe(
        opc=NvmOpcode.DATASET_MANAGEMENT,
        cid=12,
        nsid=2,
        psdt=1,
        dptr=SglDescriptor.in_capsule(len(ranges)).build(),
        **DsmCommand(nr=0, attributes=4).dwords(),
    )
    script.command(dsm, ranges, nvme__cmd__opc=9)
    script.response(Cqe(cid=12, sqhd=4, sqid=1))


def terminate(script: Script) -> None:
    """Both termination requests, with the header that gave offence."""
    offence = CommonHeader(pdu_type=PduType.CAPSULE_CMD, hlen=71, plen=72).build()
    for pdu_type, name, from_host in (
        (PduType.H2C_TERM_REQ, "h2ctermreq", True),
        (PduType.C2H_TERM_REQ, "c2htermreq", False),
    ):
        term = TermReq(fes=1, fei=2, data=offence.ljust(24, b"\0"), pdu_type=pdu_type)
        header = CommonHeader(pdu_type=pdu_type, hlen=24, plen=48)
        numbers = {f"nvme_tcp__{name}__fes": 1, f"nvme_tcp__{name}__phfo": 2}
        script.raw(from_host, term.build(), header, **numbers)


def judge(script: Script, path: Path) -> None:
    """Have tshark read the conversation and make every check."""
    write_pcap(path, [script.wire])
    frames = dissect(path, *CHECK_DIGESTS)
    for frame in frames:
        assert not frame.has("_ws.malformed")
        assert not [seen.label for seen in frame.all("_ws.expert") if "Chat" not in seen.label]
        assert not frame.has("nvme-tcp.unknown_data")
    packets = [frame for frame in frames if frame.has("nvme-tcp")]
    assert len(packets) == len(script.checks)
    for packet, (name, check) in zip(packets, script.checks, strict=True):
        try:
            check(packet)
        except AssertionError as error:
            error.add_note(f"PDU: {name}")
            raise


digests = pytest.mark.parametrize(
    ("hdgst", "ddgst"), [(False, False), (True, False), (False, True), (True, True)], ids=["none", "h", "d", "hd"]
)


@digests
def test_admin_queue(tmp_path: Path, hdgst: bool, ddgst: bool) -> None:
    script = Script(hdgst, ddgst, Conversation())
    for part in (initialize, _connect_admin, other_fabrics_commands, identify, discovery_log, log_pages, features):
        part(script)
    terminate(script)
    judge(script, tmp_path / "admin.pcap")


def _connect_admin(script: Script) -> None:
    connect(script, 0)


@digests
def test_io_queue(tmp_path: Path, hdgst: bool, ddgst: bool) -> None:
    script = Script(hdgst, ddgst, Conversation())
    initialize(script)
    connect(script, 1)
    io(script)
    judge(script, tmp_path / "io.pcap")


@pytest.mark.parametrize("spoilt", ["hdgst", "ddgst"])
def test_the_judge_sees_a_wrong_digest(tmp_path: Path, spoilt: str) -> None:
    """Without this the tests above could pass with a tshark that looks at nothing."""
    script = Script(True, True, Conversation())
    initialize(script)
    connect(script, 1)
    frame = bytearray(script.wire.frames[-2])
    frame[-1 if spoilt == "ddgst" else 14 + 20 + 20 + 72] ^= 1  # Ethernet, IP, TCP, header
    script.wire.frames[-2] = bytes(frame)
    with pytest.raises(AssertionError, match=spoilt):
        judge(script, tmp_path / "bad.pcap")
