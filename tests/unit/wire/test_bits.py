"""Bits inside words: each entry is ``name: lowest bit, width`` of the word, as the specifications have them."""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest

from nvmet_p2p.wire import features, identify, logpages, nvm, views
from nvmet_p2p.wire.codec import Wire, WireError
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.sqe import Sqe
from tests.support.wire_values import declared, empty, full

# The structure read as one little endian number: (lowest bit, width).
BITS: Final[dict[type[Wire], dict[str, tuple[int, int]]]] = {
    Sqe: {"fuse": (8, 2), "psdt": (14, 2)},
    Cqe: {"status": (113, 11), "crd": (124, 2), "more": (126, 1), "dnr": (127, 1)},
    identify.PowerStateDescriptor: {
        "mxps": (24, 1),
        "nops": (25, 1),
        "rrt": (96, 5),
        "rrl": (104, 5),
        "rwt": (112, 5),
        "rwl": (120, 5),
        "ips": (150, 2),
        "apw": (176, 3),
        "aps": (182, 2),
    },
    identify.LbaFormat: {"ms": (0, 16), "lbads": (16, 8), "rp": (24, 2)},
    logpages.CommandEffects: {
        "csupp": (0, 1),
        "lbcc": (1, 1),
        "ncc": (2, 1),
        "nic": (3, 1),
        "ccc": (4, 1),
        "cser": (14, 2),
        "cse": (16, 3),
        "uss": (19, 1),
        "csp": (20, 12),
    },
    logpages.LidSupport: {"lsupp": (0, 1), "ios": (1, 1), "lidsp": (16, 16)},
    logpages.FeatureEffects: {
        "fsupp": (0, 1),
        "udcc": (1, 1),
        "ncc": (2, 1),
        "nic": (3, 1),
        "ccc": (4, 1),
        "uss": (19, 1),
        "fsp": (20, 12),
    },
    logpages.FirmwareSlotLog: {"active_slot": (0, 3), "next_slot": (4, 3)},
    logpages.AnaGroupHeader: {"state": (128, 4)},
    features.Arbitration: {"ab": (0, 3), "lpw": (8, 8), "mpw": (16, 8), "hpw": (24, 8)},
    features.PowerManagement: {"ps": (0, 5), "wh": (5, 3)},
    features.TemperatureThreshold: {"tmpth": (0, 16), "tmpsel": (16, 4), "thsel": (20, 2), "tmpthh": (22, 3)},
    features.ErrorRecovery: {"tler": (0, 16), "dulbe": (16, 1)},
    features.VolatileWriteCache: {"wce": (0, 1)},
    features.NumberOfQueues: {"nsq": (0, 16), "ncq": (16, 16)},
    features.InterruptCoalescing: {"thr": (0, 8), "time": (8, 8)},
    features.InterruptVectorConfiguration: {"iv": (0, 16), "cd": (16, 1)},
    features.WriteAtomicity: {"dn": (0, 1)},
    features.AsyncEventConfiguration: {
        "smart": (0, 8),
        "nsan": (8, 1),
        "fwan": (9, 1),
        "tln": (10, 1),
        "anacn": (11, 1),
        "plealcn": (12, 1),
        "lbasn": (13, 1),
        "egealcn": (14, 1),
        "nnsshdn": (15, 1),
        "zdcn": (27, 1),
        "dlpcn": (31, 1),
    },
    features.KeepAliveTimer: {"kato": (0, 32)},
    features.IoCommandSetProfile: {"iocci": (0, 9)},
    features.HostIdentifier: {"exhid": (0, 1)},
    features.ReservationNotificationMask: {"regpre": (1, 1), "resrel": (2, 1), "respre": (3, 1)},
    features.ReservationPersistence: {"ptpl": (0, 1)},
    features.NamespaceWriteProtection: {"wps": (0, 3)},
    features.SupportedCapabilities: {"saveable": (0, 1), "ns_specific": (1, 1), "changeable": (2, 1)},
    features.Timestamp: {"timestamp": (0, 48), "synch": (48, 1), "origin": (49, 3)},
    features.HostBehaviorSupport: {
        "acre": (0, 8),
        "etdas": (8, 8),
        "lbafee": (16, 8),
        "hdisns": (24, 8),
        "cdfe": (32, 16),
    },
    # Command views start at dword 10
    views.IdentifyCommand: {"cns": (0, 8), "cntid": (16, 16), "cnssid": (32, 16), "csi": (56, 8), "uidx": (128, 7)},
    views.GetLogPageCommand: {
        "lid": (0, 8),
        "lsp": (8, 7),
        "rae": (15, 1),
        "numdl": (16, 16),
        "numdu": (32, 16),
        "lsi": (48, 16),
        "lpo": (64, 64),
        "uidx": (128, 7),
        "ot": (151, 1),
        "csi": (152, 8),
    },
    views.SetFeaturesCommand: {
        "fid": (0, 8),
        "sv": (31, 1),
        "cdw11": (32, 32),
        "cdw12": (64, 32),
        "cdw13": (96, 32),
        "uidx": (128, 7),
        "cdw15": (160, 32),
    },
    views.GetFeaturesCommand: {"fid": (0, 8), "sel": (8, 3), "cdw11": (32, 32), "uidx": (128, 7)},
    views.AbortCommand: {"sqid": (0, 16), "cid": (16, 16)},
    views.ReadWriteCommand: {
        "slba": (0, 64),
        "nlb": (64, 16),
        "cetype": (80, 4),
        "dtype": (84, 4),
        "stc": (88, 1),
        "deac": (89, 1),
        "prinfo": (90, 4),
        "fua": (94, 1),
        "lr": (95, 1),
        "dsm": (96, 8),
        "dspec": (112, 16),
        "lbrt": (128, 32),
        "lbat": (160, 16),
        "lbatm": (176, 16),
    },
    views.DsmCommand: {"nr": (0, 8), "attributes": (32, 32)},
    views.CopyCommand: {
        "sdlba": (0, 64),
        "nr": (64, 8),
        "desfmt": (72, 4),
        "prinfor": (76, 4),
        "cetype": (80, 4),
        "dtype": (84, 4),
        "stcw": (88, 1),
        "stcr": (89, 1),
        "prinfow": (90, 4),
        "fua": (94, 1),
        "lr": (95, 1),
        "dspec": (112, 16),
        "lbrt": (128, 32),
        "lbat": (160, 16),
        "lbatm": (176, 16),
    },
    nvm.CopyDescriptor2: {"cetype": (144, 4)},
    nvm.CopyDescriptor3: {"cetype": (144, 4)},
}


@pytest.mark.parametrize("cls", BITS, ids=lambda cls: cls.__name__)
def test_bits_lie_where_the_specification_says(cls: type[Wire]) -> None:
    table = BITS[cls]
    base = empty(cls)
    nothing = int.from_bytes(base.build(), "little")
    for name, (low, width) in table.items():
        value = dataclasses.replace(base, **{name: full(cls, name)})  # type: ignore[type-var]
        assert int.from_bytes(value.build(), "little") ^ nothing == ((1 << width) - 1) << low, name
    if len(table) > 2 and cls is not identify.PowerStateDescriptor and cls is not Cqe:
        assert list(table) == [name for name, _ in declared(cls)]


def test_a_value_too_wide_for_its_bits_is_refused() -> None:
    for value in (Sqe(fuse=4), Sqe(psdt=-1), Cqe(status=0x800), logpages.CommandEffects(cse=8)):
        with pytest.raises(WireError):
            value.build()


def test_status_and_phase() -> None:
    """Invalid Field with DNR is 4004h shifted past the phase tag; the phase tag itself is never set."""
    assert Cqe(status=0x002, dnr=True).build()[14:] == b"\x04\x80"
    assert Cqe(status=0x182).build()[14:] == b"\x04\x03"
    assert Cqe.parse(bytes(14) + b"\x05\x80") == Cqe(status=0x002, dnr=True)


def test_a_dword_is_a_number_and_back() -> None:
    assert features.NumberOfQueues(nsq=3, ncq=5).value == 0x0005_0003
    assert features.NumberOfQueues.of(0x0005_0003) == features.NumberOfQueues(nsq=3, ncq=5)


def test_views_read_an_sqe_and_give_its_dwords_back() -> None:
    view = views.GetLogPageCommand(lid=0x70, numdl=0x00FF, numdu=1, lpo=1 << 33, rae=True)
    command = Sqe(opc=2, **view.dwords())
    assert command.cdw10 == 0x00FF_8070
    assert (command.cdw12, command.cdw13) == (0, 2)
    assert views.GetLogPageCommand.of(command) == view
    assert view.numd == 0x1_00FF
    assert view.length == 0x4_0400
    assert views.ReadWriteCommand(nlb=7).blocks == 8
