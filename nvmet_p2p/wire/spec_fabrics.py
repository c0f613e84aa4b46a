"""Numbers of NVMe over Fabrics: Fabrics commands, properties, NVMe/TCP, NVMe/RDMA, discovery.

Import them from ``wire.spec``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class FabricsType(IntEnum):
    """FCTYPE, byte 4 of a Fabrics command (section 6)."""

    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04
    AUTHENTICATION_SEND = 0x05
    AUTHENTICATION_RECEIVE = 0x06
    DISCONNECT = 0x08


class PduType(IntEnum):
    """NVMe/TCP PDU-Type (TCP 3.6)."""

    IC_REQ = 0x00
    IC_RESP = 0x01
    H2C_TERM_REQ = 0x02
    C2H_TERM_REQ = 0x03
    CAPSULE_CMD = 0x04
    CAPSULE_RESP = 0x05
    H2C_DATA = 0x06
    C2H_DATA = 0x07
    R2T = 0x09
    KD_REQ = 0x0A
    KD_RESP = 0x0B


class PduFlag(IntFlag):
    """FLAGS of the common header; the last two mean something in data PDUs only."""

    HDGST = 0x01
    DDGST = 0x02
    LAST_PDU = 0x04
    SUCCESS = 0x08


class DigestFlag(IntFlag):
    """DGST of ICReq and ICResp."""

    HDGST = 0x01
    DDGST = 0x02


class Fes(IntEnum):
    """Fatal Error Status of a termination request (TCP 3.6.2.3)."""

    INVALID_HEADER_FIELD = 0x01
    PDU_SEQUENCE_ERROR = 0x02
    HEADER_DIGEST_ERROR = 0x03
    DATA_TRANSFER_OUT_OF_RANGE = 0x04
    LIMIT_EXCEEDED = 0x05  # data transfer limit, and R2T limit
    UNSUPPORTED_PARAMETER = 0x06


class Trtype(IntEnum):
    """TRTYPE of a discovery log page entry."""

    RDMA = 1
    FC = 2
    TCP = 3
    INTRA_HOST = 254


class Adrfam(IntEnum):
    """ADRFAM of a discovery log page entry."""

    IPV4 = 1
    IPV6 = 2
    IB = 3
    FC = 4
    INTRA_HOST = 254


class Subtype(IntEnum):
    """SUBTYPE of a discovery log page entry."""

    REFERRAL = 1
    NVM = 2
    CURRENT_DISCOVERY = 3


class TreqSecureChannel(IntEnum):
    """TREQ, bits 1:0: is a secure channel (TLS) asked for."""

    NOT_SPECIFIED = 0
    REQUIRED = 1
    NOT_REQUIRED = 2


class TreqFlag(IntFlag):
    """TREQ, the other bits."""

    DISABLE_SQ_FLOW_CONTROL = 0x04


class DiscoveryEflag(IntFlag):
    """EFLAGS of a discovery log page entry."""

    DUPLICATE_RETURNED_INFORMATION = 0x1
    EXPLICIT_PERSISTENT_CONNECTION = 0x2
    NO_CDC_CONNECTIVITY = 0x4


class TcpSecType(IntEnum):
    """SECTYPE, byte 0 of TSAS of a TCP entry."""

    NONE = 0
    TLS12 = 1
    TLS13 = 2


class RdmaQpType(IntEnum):
    """RDMA_QPTYPE, byte 0 of TSAS of an RDMA entry."""

    RELIABLE_CONNECTED = 1
    RELIABLE_DATAGRAM = 2


class RdmaPrType(IntEnum):
    """RDMA_PRTYPE, byte 1 of TSAS of an RDMA entry."""

    NOT_SPECIFIED = 1
    INFINIBAND = 2
    ROCE = 3
    ROCE_V2 = 4
    IWARP = 5


class RdmaCms(IntEnum):
    """RDMA_CMS, byte 2 of TSAS of an RDMA entry."""

    RDMA_CM = 1


class RdmaRejectStatus(IntEnum):
    """STS of the private data of an RDMA CM reject (RDMA 3.3)."""

    INVALID_PRIVATE_DATA_LENGTH = 0x01
    INVALID_RECFMT = 0x02
    INVALID_QID = 0x03
    INVALID_HSQSIZE = 0x04
    INVALID_HRQSIZE = 0x05
    NO_RESOURCES = 0x06
    INVALID_IRD = 0x07
    INVALID_ORD = 0x08
    INVALID_CNTLID = 0x09


class ConnectAttribute(IntFlag):
    """CATTR of Connect, the bits above the priority class."""

    DISABLE_SQ_FLOW_CONTROL = 0x04
    INDIVIDUAL_QUEUE_DELETION = 0x08


class AuthRequirement(IntFlag):
    """AUTHREQ in the upper half of dword 0 of a successful Connect."""

    ATR = 0x02  # DH-HMAC-CHAP must follow (bit 17 of the dword)
    ASCR = 0x04  # a secure channel by authentication (bit 18)


class SecurityProtocol(IntEnum):
    """SECP of Authentication Send and Receive; NVMe in-band authentication is E9h."""

    NVME = 0xE9


class PropertyOffset(IntEnum):
    """OFST of Property Get and Set (section 3.1.4)."""

    CAP = 0x00
    VS = 0x08
    INTMS = 0x0C
    INTMC = 0x10
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30
    CMBLOC = 0x38
    CMBSZ = 0x3C
    BPINFO = 0x40
    NSSD = 0x64
    CRTO = 0x68


class Css(IntEnum):
    """CC.CSS."""

    NVM = 0
    ALL_SUPPORTED = 6
    ADMIN_ONLY = 7


class ShutdownNotification(IntEnum):
    """CC.SHN."""

    NONE = 0
    NORMAL = 1
    ABRUPT = 2


class ShutdownStatus(IntEnum):
    """CSTS.SHST."""

    NORMAL = 0
    OCCURRING = 1
    COMPLETE = 2
