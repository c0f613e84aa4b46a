"""Features (NVMe base 5.1.25, 5.1.11; NVM Command Set 4.1.3): one table, and the values of one controller.

Nothing is saveable, so SEL "saved" gives the default, and every controller reset sets everything back to it, except
what belongs to the association (Keep Alive Timer, Host Identifier) or to the namespace (write protection).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target.command import (
    ANY,
    IO,
    LOC_CDW10,
    LOC_CDW11,
    LOC_NSID,
    NO_TRANSFER,
    Result,
    Transfer,
    from_host,
    invalid_field,
    to_host,
)
from nvmet_p2p.target.events import SMART_BITS, supported_notices
from nvmet_p2p.target.feature_values import COPY_FORMATS_ENABLED
from nvmet_p2p.target.keep_alive import granted_ms
from nvmet_p2p.wire import features as wire
from nvmet_p2p.wire.spec import NSID_ALL, ControllerType, FeatureId, FeatureSelect, Status, WriteProtectState
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import GetFeaturesCommand, SetFeaturesCommand

if TYPE_CHECKING:
    from nvmet_p2p.target.controller import Controller
    from nvmet_p2p.target.queue import Request

WARNING_TEMPERATURE_K: Final = 0x157  # WCTEMP, the value that NVMe base recommends
CRITICAL_TEMPERATURE_K: Final = 0x175
SENSOR_ALL: Final = 0xF


Getter = Callable[["Controller", Sqe, bool], Result]
"""(controller, command, give the default instead of the current value)."""

Done = Callable[[NvmeStatusError | None], None]
Later = Callable[[Done], None]  # begins the rest of the work and calls back once, with what went wrong or None
Setter = Callable[["Controller", Sqe, bytes, float], Result | Later]


@dataclass(frozen=True, slots=True)
class Feature:
    """A row of the feature table. Lengths are bytes of data; a feature without ``set`` cannot be changed."""

    code: int
    name: str
    section: str
    controllers: frozenset[ControllerType]
    get: Getter
    set: Setter | None = None
    get_bytes: int = 0
    set_bytes: int = 0
    per_namespace: bool = False
    check_get: Callable[[Controller, Sqe], None] | None = None  # refuse before anything is known of the data
    check_set: Callable[[Controller, Sqe], None] | None = None


# -- Values that are no more than values -------------------------------------------------------------------------------


def _plain(fid: FeatureId, default: int, mask: int) -> tuple[Getter, Setter]:
    """A feature whose dword 11 is kept: reserved bits read as zero."""

    def get(controller: Controller, _sqe: Sqe, want_default: bool) -> Result:
        return Result(dw0=default if want_default else controller.features.get(fid, default))

    def set_(controller: Controller, sqe: Sqe, _data: bytes, _now: float) -> Result:
        controller.features.set(fid, sqe.cdw11 & mask)
        return Result()

    return get, set_


_ARBITRATION = _plain(FeatureId.ARBITRATION, wire.Arbitration(ab=7).value, 0xFFFFFF07)
_POWER = _plain(FeatureId.POWER_MANAGEMENT, 0, 0xE0)
_ATOMICITY = _plain(FeatureId.WRITE_ATOMICITY, 0, 0x1)


def _set_power(controller: Controller, sqe: Sqe, data: bytes, now: float) -> Result | Later:
    if wire.PowerManagement.of(sqe.cdw11).ps != 0:
        raise invalid_field(LOC_CDW11, "NPSS is 0: there is one power state")
    return _POWER[1](controller, sqe, data, now)


# -- Temperature Threshold ---------------------------------------------------------------------------------------------


def _threshold(sqe: Sqe) -> wire.TemperatureThreshold:
    """The composite temperature is all that there is; sensor 1 to 8 are not implemented."""
    threshold = wire.TemperatureThreshold.of(sqe.cdw11)
    if threshold.tmpsel not in (0, SENSOR_ALL):
        raise invalid_field(LOC_CDW11 + 2, f"TMPSEL {threshold.tmpsel}")
    if threshold.thsel > 1:
        raise invalid_field(LOC_CDW11 + 2, f"THSEL {threshold.thsel}", 4)
    return threshold


def _get_temperature(controller: Controller, sqe: Sqe, want_default: bool) -> Result:
    threshold = _threshold(sqe)
    if threshold.tmpsel == SENSOR_ALL:
        raise invalid_field(LOC_CDW11 + 2, "TMPSEL Fh is for Set Features")
    default = WARNING_TEMPERATURE_K if threshold.thsel == 0 else 0
    if want_default:
        return Result(dw0=default)
    return Result(dw0=controller.features.get(FeatureId.TEMPERATURE_THRESHOLD, default, threshold.thsel))


def _set_temperature(controller: Controller, sqe: Sqe, _data: bytes, _now: float) -> Result:
    threshold = _threshold(sqe)
    controller.features.set(FeatureId.TEMPERATURE_THRESHOLD, threshold.tmpth, threshold.thsel)
    return Result()


# -- Error Recovery (each namespace) -----------------------------------------------------------------------------------


def _get_recovery(controller: Controller, sqe: Sqe, want_default: bool) -> Result:
    nsid = _feature_nsid(controller, sqe)
    return Result(dw0=0 if want_default else controller.features.get(FeatureId.ERROR_RECOVERY, 0, nsid))


def _set_recovery(controller: Controller, sqe: Sqe, _data: bytes, _now: float) -> Result:
    recovery = wire.ErrorRecovery.of(sqe.cdw11)
    if recovery.dulbe:
        raise invalid_field(LOC_CDW11 + 2, "NSFEAT has no DAE: DULBE cannot be enabled")
    targets = controller.active_nsids() if sqe.nsid == NSID_ALL else [_feature_nsid(controller, sqe)]
    for nsid in targets:
        controller.features.set(FeatureId.ERROR_RECOVERY, recovery.tler, nsid)
    return Result()


def _feature_nsid(controller: Controller, sqe: Sqe) -> int:
    """The one active namespace that a namespace specific feature is for."""
    if not 1 <= sqe.nsid <= controller.nn:
        raise NvmeStatusError(Status.INVALID_NAMESPACE_OR_FORMAT, f"NSID {sqe.nsid:#x}", error_loc=LOC_NSID)
    if controller.namespace(sqe.nsid) is None:
        raise invalid_field(LOC_NSID, f"NSID {sqe.nsid} is inactive")  # NVMe base 3.2.1.5: unless otherwise noted
    return sqe.nsid


# -- Volatile Write Cache ----------------------------------------------------------------------------------------------


def _get_cache(_controller: Controller, _sqe: Sqe, _want_default: bool) -> Result:
    return Result(dw0=wire.VolatileWriteCache(wce=True).value)


def _set_cache(_controller: Controller, sqe: Sqe, _data: bytes, _now: float) -> Result:
    """The cache is the back end's: it is on, and a host that wants more has FUA and Flush."""
    if not wire.VolatileWriteCache.of(sqe.cdw11).wce:
        raise NvmeStatusError(Status.FEATURE_NOT_CHANGEABLE, "the cache cannot be turned off", error_loc=LOC_CDW11)
    return Result()


# -- Number of Queues --------------------------------------------------------------------------------------------------


def _granted(controller: Controller) -> int:
    queues = controller.transport.max_io_qpairs_per_ctrlr - 1
    return wire.NumberOfQueues(nsq=queues, ncq=queues).value


def _get_queues(controller: Controller, _sqe: Sqe, _want_default: bool) -> Result:
    return Result(dw0=_granted(controller))


def _set_queues(controller: Controller, sqe: Sqe, _data: bytes, _now: float) -> Result:
    asked = wire.NumberOfQueues.of(sqe.cdw11)
    if 0xFFFF in (asked.nsq, asked.ncq):
        raise invalid_field(LOC_CDW11 if asked.nsq == 0xFFFF else LOC_CDW11 + 2, "65535 queues")
    if controller.io_queues:
        raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, "Number of Queues after an I/O queue was made")
    # The allocation may be more than was asked for, and does not depend on it.
    return Result(dw0=_granted(controller))


# -- Asynchronous Event Configuration, Keep Alive Timer ----------------------------------------------------------------


def _get_events(controller: Controller, _sqe: Sqe, want_default: bool) -> Result:
    return Result(dw0=0 if want_default else controller.events.config)


def _set_events(controller: Controller, sqe: Sqe, _data: bytes, _now: float) -> Result:
    """Notices that OAES does not promise cannot be enabled: their bits stay 0."""
    possible = supported_notices(controller.type, controller.config.ana_reporting)
    if controller.type is ControllerType.IO:
        possible |= SMART_BITS
    controller.events.configure(sqe.cdw11 & possible)
    return Result()


def _get_keep_alive(controller: Controller, _sqe: Sqe, _want_default: bool) -> Result:
    return Result(dw0=controller.kato_ms)


def _set_keep_alive(controller: Controller, sqe: Sqe, _data: bytes, now: float) -> Result:
    controller.kato_ms = granted_ms(sqe.cdw11, controller.transport, controller.type, LOC_CDW11)
    controller.start_keep_alive(now)
    return Result()


# -- Host Behavior Support ---------------------------------------------------------------------------------------------


def _get_behavior(controller: Controller, _sqe: Sqe, want_default: bool) -> Result:
    return Result(data=(wire.HostBehaviorSupport() if want_default else controller.features.host_behavior).build())


def _set_behavior(controller: Controller, _sqe: Sqe, data: bytes, _now: float) -> Result:
    behavior = wire.HostBehaviorSupport.parse(data)
    for value, name in ((behavior.acre, "ACRE"), (behavior.etdas, "ETDAS"), (behavior.lbafee, "LBAFEE")):
        if value > 1:
            raise NvmeStatusError(Status.INVALID_FIELD, f"{name} {value}")
    if behavior.cdfe & ~COPY_FORMATS_ENABLED:
        raise NvmeStatusError(Status.INVALID_FIELD, f"CDFE {behavior.cdfe:#x}: OCFS has formats 0h to 3h")
    controller.features.host_behavior = behavior
    controller.publish()
    return Result()


# -- I/O Command Set Profile, Host Identifier --------------------------------------------------------------------------


def _get_profile(_controller: Controller, _sqe: Sqe, _want_default: bool) -> Result:
    return Result()


def _set_profile(_controller: Controller, sqe: Sqe, _data: bytes, _now: float) -> Result:
    profile = wire.IoCommandSetProfile.of(sqe.cdw11)
    if profile.iocci != 0:
        raise NvmeStatusError(
            Status.IO_COMMAND_SET_COMBINATION_REJECTED, f"combination {profile.iocci}", error_loc=LOC_CDW11
        )
    return Result()


def _check_host_id(_controller: Controller, sqe: Sqe) -> None:
    if not wire.HostIdentifier.of(sqe.cdw11).exhid:
        raise invalid_field(LOC_CDW11, "over fabrics a Host Identifier has 128 bits (EXHID)")


def _get_host_id(controller: Controller, _sqe: Sqe, want_default: bool) -> Result:
    return Result(data=bytes(16) if want_default else controller.hostid)


def _refuse_host_id(_controller: Controller, _sqe: Sqe) -> None:
    raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, "the Host Identifier is set by Connect")


# -- Namespace Write Protection ----------------------------------------------------------------------------------------


def _get_protection(controller: Controller, sqe: Sqe, want_default: bool) -> Result:
    nsid = _feature_nsid(controller, sqe)
    namespace = controller.namespaces[nsid]
    state = WriteProtectState.WRITE_PROTECT if namespace.write_protected else WriteProtectState.NONE
    return Result(dw0=WriteProtectState.NONE if want_default else state)


def _set_protection(controller: Controller, sqe: Sqe, _data: bytes, _now: float) -> Later:
    """Completes when no write can pass any more and the state is on disk: it outlives power cycles (8.1.16)."""
    nsid = _feature_nsid(controller, sqe)
    state = wire.NamespaceWriteProtection.of(sqe.cdw11).wps
    if state not in (WriteProtectState.NONE, WriteProtectState.WRITE_PROTECT):
        raise invalid_field(LOC_CDW11, f"write protection state {state}: NWPC has 0 and 1")
    facts = controller.namespaces[nsid].facts
    if facts is not None and facts.readonly and state == WriteProtectState.NONE:
        raise NvmeStatusError(Status.FEATURE_NOT_CHANGEABLE, "the back end is read only", error_loc=LOC_CDW11)
    protected = state == WriteProtectState.WRITE_PROTECT
    return lambda done: controller.target.protect_namespace(controller.subsystem, nsid, protected, done)


FEATURES: Final[dict[int, Feature]] = {
    row.code: row
    for row in (
        Feature(FeatureId.ARBITRATION, "Arbitration", "5.1.25.1.1", IO, *_ARBITRATION),
        Feature(FeatureId.POWER_MANAGEMENT, "Power Management", "5.1.25.1.2", IO, _POWER[0], _set_power),
        Feature(
            FeatureId.TEMPERATURE_THRESHOLD,
            "Temperature Threshold",
            "5.1.25.1.3",
            IO,
            _get_temperature,
            _set_temperature,
        ),
        Feature(
            FeatureId.ERROR_RECOVERY,
            "Error Recovery",
            "NVM 4.1.3.1",
            IO,
            _get_recovery,
            _set_recovery,
            per_namespace=True,
        ),
        Feature(FeatureId.VOLATILE_WRITE_CACHE, "Volatile Write Cache", "5.1.25.1.4", IO, _get_cache, _set_cache),
        Feature(FeatureId.NUMBER_OF_QUEUES, "Number of Queues", "5.1.25.2.1", IO, _get_queues, _set_queues),
        Feature(FeatureId.WRITE_ATOMICITY, "Write Atomicity Normal", "NVM 4.1.3.3", IO, *_ATOMICITY),
        Feature(
            FeatureId.ASYNC_EVENT_CONFIGURATION,
            "Asynchronous Event Configuration",
            "5.1.25.1.5",
            ANY,
            _get_events,
            _set_events,
        ),
        Feature(FeatureId.KEEP_ALIVE_TIMER, "Keep Alive Timer", "5.1.25.1.8", ANY, _get_keep_alive, _set_keep_alive),
        Feature(
            FeatureId.HOST_BEHAVIOR_SUPPORT,
            "Host Behavior Support",
            "5.1.25.1.14",
            IO,
            _get_behavior,
            _set_behavior,
            get_bytes=wire.HostBehaviorSupport.SIZE,
            set_bytes=wire.HostBehaviorSupport.SIZE,
        ),
        Feature(
            FeatureId.IO_COMMAND_SET_PROFILE, "I/O Command Set Profile", "5.1.25.1.17", IO, _get_profile, _set_profile
        ),
        Feature(
            FeatureId.HOST_IDENTIFIER,
            "Host Identifier",
            "5.1.25.1.28",
            IO,
            _get_host_id,
            get_bytes=16,
            check_get=_check_host_id,
            check_set=_refuse_host_id,
        ),
        Feature(
            FeatureId.NAMESPACE_WRITE_PROTECTION,
            "Namespace Write Protection Config",
            "5.1.25.1.31",
            IO,
            _get_protection,
            _set_protection,
            per_namespace=True,
        ),
    )
}


# -- Get Features, Set Features ----------------------------------------------------------------------------------------


def _find(controller: Controller, fid: int) -> Feature:
    row = FEATURES.get(fid)
    if row is None or controller.type not in row.controllers:
        raise invalid_field(LOC_CDW10, f"feature {fid:#x}")
    return row


def get_transfer(controller: Controller, sqe: Sqe) -> Transfer:
    """What Get Features returns besides dword 0."""
    command = GetFeaturesCommand.of(sqe)
    row = _find(controller, command.fid)
    if command.sel > FeatureSelect.SUPPORTED:
        raise invalid_field(LOC_CDW10 + 1, f"SEL {command.sel}")
    if command.sel == FeatureSelect.SUPPORTED:
        return NO_TRANSFER
    if row.check_get is not None:
        row.check_get(controller, sqe)
    return to_host(row.get_bytes)


def get_features(controller: Controller, request: Request, _data: bytes, _now: float) -> Result:
    """Get Features (5.1.11)."""
    command = GetFeaturesCommand.of(request.sqe)
    row = _find(controller, command.fid)
    if command.sel == FeatureSelect.SUPPORTED:
        changeable = row.set is not None and row.code != FeatureId.VOLATILE_WRITE_CACHE
        return Result(dw0=wire.SupportedCapabilities(ns_specific=row.per_namespace, changeable=changeable).value)
    return row.get(controller, request.sqe, command.sel != FeatureSelect.CURRENT)


def set_transfer(controller: Controller, sqe: Sqe) -> Transfer:
    """What Set Features takes besides dword 11; refuses what no data could make right."""
    command = SetFeaturesCommand.of(sqe)
    row = _find(controller, command.fid)
    if command.sv:
        raise NvmeStatusError(Status.FEATURE_NOT_SAVEABLE, f"{row.name} is not saveable", error_loc=LOC_CDW10 + 3)
    if not row.per_namespace and sqe.nsid not in (0, NSID_ALL):
        raise NvmeStatusError(
            Status.FEATURE_NOT_NAMESPACE_SPECIFIC, f"{row.name}, NSID {sqe.nsid:#x}", error_loc=LOC_NSID
        )
    if row.check_set is not None:
        row.check_set(controller, sqe)
    if row.set is None:
        raise NvmeStatusError(Status.FEATURE_NOT_CHANGEABLE, f"{row.name} cannot be changed", error_loc=LOC_CDW10)
    return from_host(row.set_bytes)


def set_features(controller: Controller, request: Request, data: bytes, now: float) -> Result | None:
    """Set Features (5.1.25)."""
    row = _find(controller, SetFeaturesCommand.of(request.sqe).fid)
    if row.set is None:
        raise NvmeStatusError(Status.FEATURE_NOT_CHANGEABLE, f"{row.name} cannot be changed", error_loc=LOC_CDW10)
    outcome = row.set(controller, request.sqe, data, now)
    if isinstance(outcome, Result):
        return outcome
    outcome(lambda error: request.complete(Result()) if error is None else request.fail(error))
    return None
