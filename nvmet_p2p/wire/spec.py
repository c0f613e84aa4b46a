"""Numbers of the specifications as enumerations: NVM Express Base 2.1, NVM Command Set 1.1, NVMe/TCP, NVMe/RDMA.

Sections named are those of the Base specification 2.1 unless another is given. Enumerations only: no logic.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from nvmet_p2p.wire.spec_fabrics import (
    Adrfam,
    AuthRequirement,
    ConnectAttribute,
    Css,
    DigestFlag,
    DiscoveryEflag,
    FabricsType,
    Fes,
    PduFlag,
    PduType,
    PropertyOffset,
    RdmaCms,
    RdmaPrType,
    RdmaQpType,
    RdmaRejectStatus,
    SecurityProtocol,
    ShutdownNotification,
    ShutdownStatus,
    Subtype,
    TcpSecType,
    TreqFlag,
    TreqSecureChannel,
    Trtype,
)
from nvmet_p2p.wire.spec_status import Status, StatusCodeType

__all__ = [
    "FABRICS_OPCODE",
    "NSID_ALL",
    "AdminOpcode",
    "Adrfam",
    "AerErrorInfo",
    "AerIoInfo",
    "AerNoticeInfo",
    "AerSmartInfo",
    "AerType",
    "AnaState",
    "AsyncEventBit",
    "AuthRequirement",
    "Cns",
    "ConnectAttribute",
    "ControllerType",
    "CopyFormat",
    "Css",
    "DigestFlag",
    "DiscoveryEflag",
    "DsmAttribute",
    "FabricsType",
    "FeatureId",
    "FeatureSelect",
    "Fes",
    "Fuse",
    "IoCommandSet",
    "LogPage",
    "NsIdType",
    "NvmOpcode",
    "PduFlag",
    "PduType",
    "PropertyOffset",
    "Psdt",
    "RdmaCms",
    "RdmaPrType",
    "RdmaQpType",
    "RdmaRejectStatus",
    "ReservationType",
    "SecurityProtocol",
    "SglSubtype",
    "SglType",
    "ShutdownNotification",
    "ShutdownStatus",
    "SmartWarning",
    "Status",
    "StatusCodeType",
    "Subtype",
    "TcpSecType",
    "TreqFlag",
    "TreqSecureChannel",
    "Trtype",
    "WriteProtectState",
]

FABRICS_OPCODE: Final = 0x7F  # OPC of every Fabrics command; the command itself is FCTYPE
NSID_ALL: Final = 0xFFFFFFFF  # broadcast namespace identifier


class AdminOpcode(IntEnum):
    """OPC on the admin queue (section 5, figure "Opcodes for Admin Commands")."""

    DELETE_IO_SQ = 0x00
    CREATE_IO_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_IO_CQ = 0x04
    CREATE_IO_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    FIRMWARE_COMMIT = 0x10
    FIRMWARE_IMAGE_DOWNLOAD = 0x11
    DEVICE_SELF_TEST = 0x14
    NAMESPACE_ATTACHMENT = 0x15
    KEEP_ALIVE = 0x18
    DIRECTIVE_SEND = 0x19
    DIRECTIVE_RECEIVE = 0x1A
    VIRTUALIZATION_MANAGEMENT = 0x1C
    NVME_MI_SEND = 0x1D
    NVME_MI_RECEIVE = 0x1E
    CAPACITY_MANAGEMENT = 0x20
    DISCOVERY_INFORMATION_MANAGEMENT = 0x21
    FABRIC_ZONING_RECEIVE = 0x22
    LOCKDOWN = 0x24
    FABRIC_ZONING_LOOKUP = 0x25
    CLEAR_EXPORTED_NVM_RESOURCE_CONFIGURATION = 0x28
    FABRIC_ZONING_SEND = 0x29
    CREATE_EXPORTED_NVM_SUBSYSTEM = 0x2A
    MANAGE_EXPORTED_NVM_SUBSYSTEM = 0x2D
    MANAGE_EXPORTED_NAMESPACE = 0x31
    MANAGE_EXPORTED_PORT = 0x35
    SEND_DISCOVERY_LOG_PAGE = 0x39
    TRACK_SEND = 0x3D
    TRACK_RECEIVE = 0x3E
    MIGRATION_SEND = 0x41
    MIGRATION_RECEIVE = 0x42
    CONTROLLER_DATA_QUEUE = 0x45
    DOORBELL_BUFFER_CONFIG = 0x7C
    FABRICS = 0x7F
    FORMAT_NVM = 0x80
    SECURITY_SEND = 0x81
    SECURITY_RECEIVE = 0x82
    SANITIZE = 0x84
    LOAD_PROGRAM = 0x85
    GET_LBA_STATUS = 0x86
    PROGRAM_ACTIVATION_MANAGEMENT = 0x88
    MEMORY_RANGE_SET_MANAGEMENT = 0x89


class NvmOpcode(IntEnum):
    """OPC on an I/O queue: those of every command set and those of the NVM Command Set (section 7; NVM 3)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    RESERVATION_REGISTER = 0x0D
    RESERVATION_REPORT = 0x0E
    RESERVATION_ACQUIRE = 0x11
    IO_MANAGEMENT_RECEIVE = 0x12
    RESERVATION_RELEASE = 0x15
    CANCEL = 0x18
    COPY = 0x19
    IO_MANAGEMENT_SEND = 0x1D
    FABRICS = 0x7F


class Psdt(IntEnum):
    """PSDT, bits 7:6 of byte 1 of an SQE (section 4.1.1). Fabrics hosts must use SGL_MPTR_CONTIGUOUS."""

    PRP = 0
    SGL_MPTR_CONTIGUOUS = 1
    SGL_MPTR_SGL = 2


class Fuse(IntEnum):
    """FUSE, bits 1:0 of byte 1 of an SQE."""

    NORMAL = 0
    FIRST = 1
    SECOND = 2


class SglType(IntEnum):
    """Bits 7:4 of byte 15 of an SGL descriptor (section 4.3.2)."""

    DATA_BLOCK = 0x0
    BIT_BUCKET = 0x1
    SEGMENT = 0x2
    LAST_SEGMENT = 0x3
    KEYED_DATA_BLOCK = 0x4
    TRANSPORT_DATA_BLOCK = 0x5
    VENDOR = 0xF


class SglSubtype(IntEnum):
    """Bits 3:0 of byte 15 of an SGL descriptor; INVALIDATE_KEY is the RDMA transport's use of Fh."""

    ADDRESS = 0x0
    OFFSET = 0x1
    TRANSPORT = 0xA
    INVALIDATE_KEY = 0xF


class Cns(IntEnum):
    """CNS of Identify (section 5.1.13)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    NVM_SET_LIST = 0x04
    CSI_NAMESPACE = 0x05
    CSI_CONTROLLER = 0x06
    CSI_ACTIVE_NAMESPACES = 0x07
    NAMESPACE_INDEPENDENT = 0x08
    NAMESPACE_USER_DATA_FORMAT = 0x09
    CSI_NAMESPACE_USER_DATA_FORMAT = 0x0A
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    NAMESPACE_CONTROLLERS = 0x12
    CONTROLLERS = 0x13
    PRIMARY_CONTROLLER_CAPABILITIES = 0x14
    SECONDARY_CONTROLLERS = 0x15
    NAMESPACE_GRANULARITIES = 0x16
    UUID_LIST = 0x17
    DOMAIN_LIST = 0x18
    ENDURANCE_GROUPS = 0x19
    CSI_ALLOCATED_NAMESPACES = 0x1A
    CSI_ALLOCATED_NAMESPACE = 0x1B
    IO_COMMAND_SETS = 0x1C
    UNDERLYING_NAMESPACES = 0x1D
    PORTS = 0x1E
    CSI_ALLOCATED_NAMESPACE_INDEPENDENT = 0x1F
    SUPPORTED_CONTROLLER_STATE_FORMATS = 0x20


class IoCommandSet(IntEnum):
    """CSI (section 5.1.13, "Command Set Identifiers")."""

    NVM = 0x00
    KEY_VALUE = 0x01
    ZONED = 0x02
    SUBSYSTEM_LOCAL_MEMORY = 0x03
    COMPUTATIONAL_PROGRAMS = 0x04


class NsIdType(IntEnum):
    """NIDT of a namespace identification descriptor (CNS 03h)."""

    EUI64 = 1
    NGUID = 2
    UUID = 3
    CSI = 4


class ControllerType(IntEnum):
    """CNTRLTYPE."""

    NOT_REPORTED = 0
    IO = 1
    DISCOVERY = 2
    ADMINISTRATIVE = 3


class LogPage(IntEnum):
    """LID of Get Log Page (section 5.1.12)."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART_HEALTH = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMANDS_SUPPORTED = 0x05
    DEVICE_SELF_TEST = 0x06
    TELEMETRY_HOST = 0x07
    TELEMETRY_CONTROLLER = 0x08
    ENDURANCE_GROUP = 0x09
    PREDICTABLE_LATENCY_NVM_SET = 0x0A
    PREDICTABLE_LATENCY_AGGREGATE = 0x0B
    ANA = 0x0C
    PERSISTENT_EVENT = 0x0D
    LBA_STATUS = 0x0E
    ENDURANCE_GROUP_AGGREGATE = 0x0F
    MEDIA_UNIT_STATUS = 0x10
    SUPPORTED_CAPACITY_CONFIGURATIONS = 0x11
    FEATURE_IDENTIFIERS = 0x12
    NVME_MI_COMMANDS = 0x13
    COMMAND_AND_FEATURE_LOCKDOWN = 0x14
    BOOT_PARTITION = 0x15
    ROTATIONAL_MEDIA = 0x16
    DISPERSED_NAMESPACE_PARTICIPATION = 0x17
    MANAGEMENT_ADDRESS_LIST = 0x18
    PHY_RX_EOM = 0x19
    REACHABILITY_GROUPS = 0x1A
    REACHABILITY_ASSOCIATIONS = 0x1B
    CHANGED_ALLOCATED_NAMESPACES = 0x1C
    FDP_CONFIGURATIONS = 0x20
    FDP_RUH_USAGE = 0x21
    FDP_STATISTICS = 0x22
    FDP_EVENTS = 0x23
    DISCOVERY = 0x70
    HOST_DISCOVERY = 0x71
    AVE_DISCOVERY = 0x72
    PULL_MODEL_DDC_REQUEST = 0x73
    RESERVATION_NOTIFICATION = 0x80
    SANITIZE_STATUS = 0x81


class FeatureId(IntEnum):
    """FID of Set and Get Features (section 5.1.25)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    LBA_RANGE_TYPE = 0x03
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    AUTONOMOUS_POWER_STATE_TRANSITION = 0x0C
    HOST_MEMORY_BUFFER = 0x0D
    TIMESTAMP = 0x0E
    KEEP_ALIVE_TIMER = 0x0F
    HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10
    NON_OPERATIONAL_POWER_STATE = 0x11
    READ_RECOVERY_LEVEL = 0x12
    PREDICTABLE_LATENCY_MODE_CONFIG = 0x13
    PREDICTABLE_LATENCY_MODE_WINDOW = 0x14
    LBA_STATUS_REPORT_INTERVAL = 0x15
    HOST_BEHAVIOR_SUPPORT = 0x16
    SANITIZE_CONFIG = 0x17
    ENDURANCE_GROUP_EVENTS = 0x18
    IO_COMMAND_SET_PROFILE = 0x19
    SPINUP_CONTROL = 0x1A
    POWER_LOSS_SIGNALING = 0x1B
    PERFORMANCE_CHARACTERISTICS = 0x1C
    FLEXIBLE_DATA_PLACEMENT = 0x1D
    FDP_EVENTS = 0x1E
    NAMESPACE_ADMIN_LABEL = 0x1F
    KEY_VALUE_CONFIGURATION = 0x20
    CONTROLLER_DATA_QUEUE = 0x21
    EMBEDDED_MANAGEMENT_CONTROLLER_ADDRESS = 0x78
    HOST_MANAGEMENT_AGENT_ADDRESS = 0x79
    ENHANCED_CONTROLLER_METADATA = 0x7D
    CONTROLLER_METADATA = 0x7E
    NAMESPACE_METADATA = 0x7F
    SOFTWARE_PROGRESS_MARKER = 0x80
    HOST_IDENTIFIER = 0x81
    RESERVATION_NOTIFICATION_MASK = 0x82
    RESERVATION_PERSISTENCE = 0x83
    NAMESPACE_WRITE_PROTECTION = 0x84
    BOOT_PARTITION_WRITE_PROTECTION = 0x85


class FeatureSelect(IntEnum):
    """SEL of Get Features."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    SUPPORTED = 3


class AnaState(IntEnum):
    """Bits 3:0 of byte 16 of an ANA group descriptor."""

    OPTIMIZED = 0x1
    NON_OPTIMIZED = 0x2
    INACCESSIBLE = 0x3
    PERSISTENT_LOSS = 0x4
    CHANGE = 0xF


class AerType(IntEnum):
    """Type of an asynchronous event, bits 2:0 of dword 0 (section 5.1.2)."""

    ERROR = 0
    SMART = 1
    NOTICE = 2
    IMMEDIATE = 3
    ONE_SHOT = 4
    IO_COMMAND_SET = 6
    VENDOR = 7


class AerErrorInfo(IntEnum):
    """Bits 15:8 of dword 0, type ERROR."""

    INVALID_DOORBELL = 0x00
    INVALID_DOORBELL_VALUE = 0x01
    DIAGNOSTIC_FAILURE = 0x02
    PERSISTENT_INTERNAL_ERROR = 0x03
    TRANSIENT_INTERNAL_ERROR = 0x04
    FIRMWARE_IMAGE_LOAD_ERROR = 0x05


class AerSmartInfo(IntEnum):
    """Bits 15:8 of dword 0, type SMART."""

    RELIABILITY = 0x00
    TEMPERATURE = 0x01
    SPARE = 0x02


class AerNoticeInfo(IntEnum):
    """Bits 15:8 of dword 0, type NOTICE."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0x00
    FIRMWARE_ACTIVATION_STARTING = 0x01
    TELEMETRY_LOG_CHANGED = 0x02
    ANA_CHANGE = 0x03
    PREDICTABLE_LATENCY_CHANGED = 0x04
    LBA_STATUS = 0x05
    ENDURANCE_GROUP_CHANGED = 0x06
    REACHABILITY_GROUP_CHANGE = 0x07
    REACHABILITY_ASSOCIATION_CHANGE = 0x08
    ALLOCATED_NAMESPACE_ATTRIBUTE_CHANGED = 0x09
    ZONE_DESCRIPTOR_CHANGED = 0xEF
    DISCOVERY_LOG_CHANGE = 0xF0
    HOST_DISCOVERY_LOG_CHANGE = 0xF1


class AerIoInfo(IntEnum):
    """Bits 15:8 of dword 0, type IO_COMMAND_SET."""

    RESERVATION_LOG_AVAILABLE = 0x00
    SANITIZE_COMPLETED = 0x01


class AsyncEventBit(IntFlag):
    """Asynchronous Event Configuration (feature 0Bh, dword 11); the notices have the same bit in OAES."""

    SMART_SPARE = 1 << 0
    SMART_TEMPERATURE = 1 << 1
    SMART_RELIABILITY = 1 << 2
    SMART_READ_ONLY = 1 << 3
    SMART_VOLATILE_BACKUP = 1 << 4
    NAMESPACE_ATTRIBUTE = 1 << 8
    FIRMWARE_ACTIVATION = 1 << 9
    TELEMETRY_LOG = 1 << 10
    ANA_CHANGE = 1 << 11
    PREDICTABLE_LATENCY = 1 << 12
    LBA_STATUS = 1 << 13
    ENDURANCE_GROUP = 1 << 14
    NORMAL_SUBSYSTEM_SHUTDOWN = 1 << 15
    ZONE_DESCRIPTOR = 1 << 27
    DISCOVERY_LOG = 1 << 31


class SmartWarning(IntFlag):
    """Critical Warning of the SMART / Health log page."""

    SPARE = 0x01
    TEMPERATURE = 0x02
    RELIABILITY = 0x04
    READ_ONLY = 0x08
    VOLATILE_BACKUP = 0x10
    PMR = 0x20


class CopyFormat(IntEnum):
    """Descriptor Format of Copy (NVM 3.2.3): 2 and 3 carry the source's NSID, 1 and 3 a 64 bit guard."""

    FORMAT_0 = 0
    FORMAT_1 = 1
    FORMAT_2 = 2
    FORMAT_3 = 3


class DsmAttribute(IntFlag):
    """Dword 11 of Dataset Management."""

    INTEGRAL_READ = 0x1
    INTEGRAL_WRITE = 0x2
    DEALLOCATE = 0x4


class WriteProtectState(IntEnum):
    """Feature 84h."""

    NONE = 0
    WRITE_PROTECT = 1
    UNTIL_POWER_CYCLE = 2
    PERMANENT = 3


class ReservationType(IntEnum):
    """RTYPE of the reservation commands (section 8.1.22)."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 2
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 3
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 4
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 6
