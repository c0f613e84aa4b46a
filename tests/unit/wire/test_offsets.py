"""Where each field lies, from tables written down from the specifications' figures (sizes in order, not offsets).

A field is found by setting all its bits in an otherwise empty structure and looking at which bytes changed. An entry
``_9`` is nine reserved bytes. Bit fields are checked in ``test_bits.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest

from nvmet_p2p.wire import cqe, discovery, fabrics, identify, logpages, nvm, rdma_cm, sqe, tcp_pdu
from nvmet_p2p.wire.codec import Wire
from tests.support.wire_values import empty, full

COMMON: Final = "pdu_type 1 flags 1 hlen 1 pdo 1 plen 4 "
FABRICS: Final = "opc 1 [fuse psdt] 1 cid 2 fctype 1 _19 dptr 16 "

TABLES: Final[dict[type[Wire], str]] = {
    sqe.Sqe: """opc 1 [fuse psdt] 1 cid 2 nsid 4 cdw2 4 cdw3 4 mptr 8 dptr 16
        cdw10 4 cdw11 4 cdw12 4 cdw13 4 cdw14 4 cdw15 4""",
    cqe.Cqe: "dw0 4 dw1 4 sqhd 2 sqid 2 cid 2 [status crd more dnr] 2",
    tcp_pdu.CommonHeader: COMMON,
    tcp_pdu.IcReq: COMMON + "pfv 2 hpda 1 dgst 1 maxr2t 4 _112",
    tcp_pdu.IcResp: COMMON + "pfv 2 cpda 1 dgst 1 maxh2cdata 4 _112",
    tcp_pdu.TermReqHeader: COMMON + "fes 2 fei 4 _10",
    tcp_pdu.CapsuleCmd: COMMON + "sqe 64",
    tcp_pdu.CapsuleResp: COMMON + "cqe 16",
    tcp_pdu.H2CData: COMMON + "cccid 2 ttag 2 datao 4 datal 4 _4",
    tcp_pdu.C2HData: COMMON + "cccid 2 _2 datao 4 datal 4 _4",
    tcp_pdu.R2T: COMMON + "cccid 2 ttag 2 r2to 4 r2tl 4 _4",
    fabrics.FabricsCommand: FABRICS + "_24",
    fabrics.ConnectCommand: FABRICS + "recfmt 2 qid 2 sqsize 2 cattr 1 _1 kato 4 _12",
    fabrics.PropertyGet: FABRICS + "attrib 1 _3 ofst 4 _16",
    fabrics.PropertySet: FABRICS + "attrib 1 _3 ofst 4 value 8 _8",
    fabrics.Disconnect: FABRICS + "recfmt 2 _22",
    fabrics.AuthSend: FABRICS + "_1 spsp0 1 spsp1 1 secp 1 tl 4 _16",
    fabrics.AuthRecv: FABRICS + "_1 spsp0 1 spsp1 1 secp 1 al 4 _16",
    fabrics.ConnectData: "hostid 16 cntlid 2 _238 subnqn_raw 256 hostnqn_raw 256 _256",
    fabrics.ConnectSuccess: "cntlid 2 authreq 2",
    fabrics.ConnectInvalid: "ipo 2 iattr 1 _1",
    rdma_cm.CmRequest: "recfmt 2 qid 2 hrqsize 2 hsqsize 2 cntlid 2 _22",
    rdma_cm.CmAccept: "recfmt 2 crqsize 2 _28",
    rdma_cm.CmReject: "recfmt 2 sts 2",
    identify.PowerStateDescriptor: """mp 2 _1 [mxps nops] 1 enlat 4 exlat 4 [rrt] 1 [rrl] 1 [rwt] 1 [rwl] 1
        idlp 2 [ips] 1 _1 actp 2 [apw aps] 1 _9""",
    identify.IdentifyController: """vid 2 ssvid 2 sn 20 mn 40 fr 8 rab 1 ieee 3 cmic 1 mdts 1 cntlid 2 ver 4
        rtd3r 4 rtd3e 4 oaes 4 ctratt 4 rrls 2 bpcap 1 _1 nssl 4 _2 plsi 1 cntrltype 1 fguid 16 crdt1 2 crdt2 2 crdt3 2
        crcap 1 ciu 1 cirn 8 _96 _13 nvmsr 1 vwci 1 mec 1
        oacs 2 acl 1 aerl 1 frmw 1 lpa 1 elpe 1 npss 1 avscc 1 apsta 1 wctemp 2 cctemp 2 mtfa 2 hmpre 4 hmmin 4
        tnvmcap 16 unvmcap 16 rpmbs 4 edstt 2 dsto 1 fwug 1 kas 2 hctma 2 mntmt 2 mxtmt 2 sanicap 4 hmminds 4 hmmaxd 2
        nsetidmax 2 endgidmax 2 anatt 1 anacap 1 anagrpmax 4 nanagrpid 4 pels 4 domainid 2 kpioc 1 _1 mptfawr 2 _6
        megcap 16 tmpthha 1 _1 cqt 2 _124
        sqes 1 cqes 1 maxcmd 2 nn 4 oncs 2 fuses 2 fna 1 vwc 1 awun 2 awupf 2 icsvscc 1 nwpc 1 acwu 2 ocfs 2 sgls 4
        mnan 4 maxdna 16 maxcna 4 oaqd 4 _200 subnqn 256 _768
        ioccsz 4 iorcsz 4 icdoff 2 fcatt 1 msdbd 1 ofcs 2 dctype 1 _241 psd 1024 _1024""",
    identify.LbaFormat: "ms 2 lbads 1 [rp] 1",
    identify.IdentifyNamespace: """nsze 8 ncap 8 nuse 8 nsfeat 1 nlbaf 1 flbas 1 mc 1 dpc 1 dps 1 nmic 1 rescap 1
        fpi 1 dlfeat 1 nawun 2 nawupf 2 nacwu 2 nabsn 2 nabo 2 nabspf 2 noiob 2 nvmcap 16 npwg 2 npwa 2 npdg 2 npda 2
        nows 2 mssrl 2 mcl 4 msrc 1 kpios 1 nulbaf 1 _1 kpiodaag 4 _4 anagrpid 4 _3 nsattr 1 nvmsetid 2 endgid 2
        nguid 16 eui64 8 lbaf 256 _3712""",
    identify.IdentifyNamespaceIndependent: """nsfeat 1 nmic 1 rescap 1 fpi 1 anagrpid 4 nsattr 1 _1 nvmsetid 2 endgid 2
        nstat 1 kpios 1 maxkt 2 _2 rgrpid 4 _4072""",
    identify.IdentifyNvmNamespace: """lbstm 8 pic 1 pifa 1 _2 elbaf 256 npdgl 4 nprg 4 npra 4 nors 4 npdal 4 lbapss 4
        tlbaag 4 _3800""",
    identify.IdentifyNvmController: """vsl 1 wzsl 1 wusl 1 dmrl 1 dmrsl 4 dmsl 8 kpiocap 1 wzdsl 1 aocs 2 ver 4
        lbamqf 1 _4071""",
    identify.IoCommandSetVector: "vectors 4096",
    identify.NsIdDescriptorHeader: "nidt 1 nidl 1 _2",
    logpages.ErrorInformationEntry: """error_count 8 sqid 2 cid 2 status_field 2 error_location 2 lba 8 nsid 4 vsia 1
        trtype 1 csi 1 opc 1 command_specific 8 transport_specific 2 _21 lpver 1""",
    logpages.SmartLog: """critical_warning 1 composite_temperature 2 available_spare 1 available_spare_threshold 1
        percentage_used 1 endurance_group_critical_warning 1 _25 data_units_read 16 data_units_written 16
        host_read_commands 16 host_write_commands 16 controller_busy_time 16 power_cycles 16 power_on_hours 16
        unsafe_shutdowns 16 media_errors 16 error_log_entries 16 warning_temperature_time 4 critical_temperature_time 4
        temperature_sensors 16 tmt1_transitions 4 tmt2_transitions 4 tmt1_time 4 tmt2_time 4 _280""",
    logpages.FirmwareRevision: "revision 8",
    logpages.FirmwareSlotLog: "[active_slot next_slot] 1 _7 frs 56 _448",
    logpages.CommandsSupportedLog: "acs 1024 iocs 1024 _2048",
    logpages.SupportedLogPages: "lids 1024",
    logpages.FeatureEffectsLog: "fids 1024",
    logpages.EnduranceGroupLog: """critical_warning 1 egfeat 1 _1 available_spare 1 available_spare_threshold 1
        percentage_used 1 domainid 2 _24 endurance_estimate 16 data_units_read 16 data_units_written 16
        media_units_written 16 host_read_commands 16 host_write_commands 16 media_errors 16 error_log_entries 16
        tegcap 16 uegcap 16 _320""",
    logpages.AnaLogHeader: "chgcnt 8 ngrps 2 _6",
    logpages.AnaGroupHeader: "agid 4 nnv 4 chgcnt 8 [state] 1 _15",
    discovery.DiscoveryEntry: """trtype 1 adrfam 1 subtype 1 treq 1 portid 2 cntlid 2 asqsz 2 eflags 2 _20 trsvcid 32
        _192 subnqn 256 traddr 256 tsas 256""",
    discovery.DiscoveryHeader: "genctr 8 numrec 8 recfmt 2 dlpf 1 _1 tdlpl 4 _1000",
    discovery.TcpTsas: "sectype 1 _255",
    discovery.RdmaTsas: "qptype 1 prtype 1 cms 1 _5 pkey 2 _246",
    nvm.DsmRange: "attributes 4 nlb 4 slba 8",
    nvm.CopyDescriptor0: "_8 slba 8 nlb 2 [cetype] 1 _1 cev 2 _2 elbt 4 elbat 2 elbatm 2",
    nvm.CopyDescriptor1: "_8 slba 8 nlb 2 [cetype] 1 _1 cev 2 _4 elbt 10 elbat 2 elbatm 2",
    nvm.CopyDescriptor2: "snsid 4 _4 slba 8 nlb 2 [cetype] 1 _1 cev 2 sopt 2 elbt 4 elbat 2 elbatm 2",
    nvm.CopyDescriptor3: "snsid 4 _4 slba 8 nlb 2 [cetype] 1 _1 cev 2 sopt 2 _2 elbt 10 elbat 2 elbatm 2",
}

# A few absolute offsets, as the figures give them: they catch a slip in the sizes above.
ANCHORS: Final = [
    (identify.IdentifyController, "cntlid", 78),
    (identify.IdentifyController, "cntrltype", 111),
    (identify.IdentifyController, "oacs", 256),
    (identify.IdentifyController, "kas", 320),
    (identify.IdentifyController, "sqes", 512),
    (identify.IdentifyController, "ocfs", 534),
    (identify.IdentifyController, "subnqn", 768),
    (identify.IdentifyController, "ioccsz", 1792),
    (identify.IdentifyController, "psd", 2048),
    (identify.IdentifyNamespace, "anagrpid", 92),
    (identify.IdentifyNamespace, "nguid", 104),
    (identify.IdentifyNamespace, "eui64", 120),
    (identify.IdentifyNamespace, "lbaf", 128),
    (discovery.DiscoveryEntry, "traddr", 512),
    (logpages.SmartLog, "warning_temperature_time", 192),
]


def fields(table: str) -> list[tuple[str, int, int]]:
    """(name, offset, size) of each field of a table; the names of a bracket share a word."""
    found = []
    position = 0
    words = iter(table.replace("[", " [ ").replace("]", " ] ").split())
    for word in words:
        if word.startswith("_"):
            position += int(word[1:])
            continue
        names = list(iter(lambda: next(words), "]")) if word == "[" else [word]
        size = int(next(words))
        found += [(name, position, size) for name in names]
        position += size
    found.append(("", position, 0))
    return found


def changed(cls: type[Wire], name: str) -> list[int]:
    """The bytes that setting one field changes."""
    base = empty(cls)
    before, after = base.build(), dataclasses.replace(base, **{name: full(cls, name)}).build()  # type: ignore[type-var]
    return [place for place, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]


@pytest.mark.parametrize("cls", TABLES, ids=lambda cls: cls.__name__)
def test_fields_lie_where_the_specification_says(cls: type[Wire]) -> None:
    *table, (_, end, _) = fields(TABLES[cls])
    assert end == cls.SIZE
    assert [name for name, _, _ in table] == [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name, offset, size in table:
        places = changed(cls, name)
        assert places, name
        assert offset <= places[0] <= places[-1] < offset + size, name
        if not _shares_a_word(TABLES[cls], name):
            assert (places[0], places[-1]) == _expected_ends(cls, name, offset, size), name


def _shares_a_word(table: str, name: str) -> bool:
    return any(name in part.split("]")[0].split() for part in table.split("[")[1:])


def _expected_ends(cls: type[Wire], name: str, offset: int, size: int) -> tuple[int, int]:
    """Arrays of structures may end with bytes that are reserved; every other field fills its place."""
    if name == "psd":
        return offset, offset + size - 10  # nine reserved bytes at the end of the last descriptor
    return offset, offset + size - 1


@pytest.mark.parametrize(("cls", "name", "offset"), ANCHORS, ids=lambda it: getattr(it, "__name__", str(it)))
def test_anchor_offsets(cls: type[Wire], name: str, offset: int) -> None:
    assert changed(cls, name)[0] == offset
