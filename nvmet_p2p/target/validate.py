"""What an operator may write: NQNs, addresses, identifiers, names. Pure checks that say what is wrong.

Sources: NVMe base specification 4.7 (NQN), Identify Controller SN and MN, and the checks of SPDK's
``nvmf_nqn_is_valid``, so that what one target takes the other takes as well.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import uuid
from typing import Final

from nvmet_p2p import limits
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import ListenAddress

INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
PARSE_ERROR: Final = -32700

TRANSPORT_TYPES: Final = ("TCP", "RDMA")
TARGET_NAME: Final = "nvmf_tgt"
DISCOVERY_NQN: Final = "nqn.2014-08.org.nvmexpress.discovery"
UUID_NQN_PREFIX: Final = "nqn.2014-08.org.nvmexpress:uuid:"
NIL_UUID: Final = str(uuid.UUID(int=0))

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NQN_DATE = re.compile(r"nqn\.[0-9]{4}-[0-9]{2}\.")
_DOMAIN_LABEL = re.compile(r"[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PRINTABLE_ASCII = re.compile(r"[\x20-\x7e]*")


def invalid(message: str) -> OperatorError:
    """A parameter is wrong (-32602)."""
    return OperatorError(INVALID_PARAMS, message)


def internal(message: str) -> OperatorError:
    """-32603: where SPDK answers "Internal error" for what a caller asked."""
    return OperatorError(INTERNAL_ERROR, message)


def failed(number: int, message: str) -> OperatorError:
    """A negated errno with its text, as SPDK answers, and then what was wrong."""
    return OperatorError(-number, f"{os.strerror(number)}: {message}")


def unsupported(message: str) -> OperatorError:
    """Asked for something that SPDK has and this target has not."""
    return failed(errno.ENOTSUP, message)


def nqn_fault(nqn: str) -> str | None:
    """What is wrong with an NQN, or ``None``."""
    length = len(nqn.encode("utf-8", "surrogatepass"))
    if not limits.NQN_LEN_MIN <= length <= limits.NQN_LEN_MAX:
        return f"an NQN has {limits.NQN_LEN_MIN} to {limits.NQN_LEN_MAX} bytes, this one has {length}"
    if nqn == DISCOVERY_NQN:
        return None
    if nqn.startswith(UUID_NQN_PREFIX):
        if _UUID.fullmatch(nqn[len(UUID_NQN_PREFIX) :]) is None:
            return f"after {UUID_NQN_PREFIX!r} a UUID must follow"
        return None
    if not nqn.startswith("nqn."):
        return "an NQN begins with 'nqn.'"
    date = _NQN_DATE.match(nqn)
    if date is None:
        return "after 'nqn.' a date must follow, as in 'nqn.2026-11.com.example:name'"
    domain, colon, name = nqn[date.end() :].partition(":")
    if not colon or not name:
        return "after the domain a ':' and a name must follow"
    for label in domain.split("."):
        if _DOMAIN_LABEL.fullmatch(label) is None:
            return (
                f"{label!r} is no label of a domain name: a letter, then letters, digits and '-', at most 63, "
                "not ending with '-'"
            )
    if _CONTROL.search(name):
        return "control characters are not allowed"
    return None


def ascii_fault(text: str, length_max: int) -> str | None:
    """What is wrong with a serial or model number, or ``None``."""
    if len(text) > length_max:
        return f"at most {length_max} characters, this has {len(text)}"
    if _PRINTABLE_ASCII.fullmatch(text) is None:
        return "only printable ASCII characters are allowed"
    return None


def name_fault(name: str) -> str | None:
    """What is wrong with the name of a bdev, or ``None``."""
    length = len(name.encode("utf-8", "surrogatepass"))
    if not 1 <= length <= limits.BDEV_NAME_BYTES_MAX:
        return f"a name has 1 to {limits.BDEV_NAME_BYTES_MAX} bytes, this one has {length}"
    if _CONTROL.search(name):
        return "control characters are not allowed"
    return None


def parse_uuid(text: str, where: str) -> str:
    """Lower case with dashes; the nil UUID counts as none given and comes back as ``""``."""
    if _UUID.fullmatch(text) is None:
        raise invalid(f"{where}: {text!r} is not a UUID like 'ceccf520-691e-4b46-9546-34af789907c5'")
    return "" if text == NIL_UUID else text.lower()


def parse_hex_id(text: str, size: int, where: str) -> str:
    """``2 * size`` hex digits, lower case; all zeroes counts as none given and comes back as ``""``."""
    if re.fullmatch(rf"[0-9a-fA-F]{{{2 * size}}}", text) is None:
        raise invalid(f"{where}: {text!r} is not {2 * size} hexadecimal digits")
    return "" if int(text, 16) == 0 else text.lower()


def parse_transport_type(trtype: str, where: str) -> str:
    """The transport's name as SPDK spells it: ``TCP`` or ``RDMA``."""
    name = trtype.upper()
    if name not in TRANSPORT_TYPES:
        raise invalid(f"{where}: there is no transport type {trtype!r}; there are {' and '.join(TRANSPORT_TYPES)}")
    return name


def parse_address(
    trtype: str, adrfam: str, traddr: str, trsvcid: str, where: str, *, missing_service: OperatorError | None = None
) -> ListenAddress:
    """A transport address in its one canonical form, so that two spellings of one address are equal."""
    name = parse_transport_type(trtype, f"{where}.trtype")
    try:
        address = ipaddress.ip_address(traddr)
    except ValueError:
        raise invalid(f"{where}.traddr: {traddr!r} is not an IP address") from None
    family = f"IPv{address.version}"
    if adrfam and adrfam.lower() not in ("ipv4", "ipv6"):
        raise invalid(f"{where}.adrfam: {adrfam!r} is not 'ipv4' or 'ipv6'")
    if adrfam and adrfam.lower() != family.lower():
        raise invalid(f"{where}.traddr: {traddr!r} is not an {adrfam} address")
    if not trsvcid:
        raise missing_service or invalid(f"{where}.trsvcid: required, a port number")
    if re.fullmatch(r"[0-9]{1,5}", trsvcid) is None or not 1 <= int(trsvcid) <= 0xFFFF:
        raise invalid(f"{where}.trsvcid: {trsvcid!r} is not a port number from 1 to 65535")
    return ListenAddress(trtype=name, adrfam=family, traddr=str(address), trsvcid=str(int(trsvcid)))
