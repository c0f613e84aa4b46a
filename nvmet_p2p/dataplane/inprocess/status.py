"""errno of a back end to NVMe status: the one place."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.wire.spec import Status

# (status, DNR). A medium that fails once may answer the next time, so those leave the decision to the host.
_BY_ERRNO: Final[Mapping[int, tuple[Status, bool]]] = {
    errno.ENOSPC: (Status.CAPACITY_EXCEEDED, True),  # thin file system is full
    errno.EDQUOT: (Status.CAPACITY_EXCEEDED, True),
    errno.EFBIG: (Status.CAPACITY_EXCEEDED, True),
    errno.ENODEV: (Status.NAMESPACE_NOT_READY, False),  # the device has gone and may come back
    errno.ENXIO: (Status.NAMESPACE_NOT_READY, False),
    errno.ENOMEDIUM: (Status.NAMESPACE_NOT_READY, False),
    errno.ESHUTDOWN: (Status.NAMESPACE_NOT_READY, False),
    errno.EROFS: (Status.NAMESPACE_WRITE_PROTECTED, True),
    errno.EACCES: (Status.ACCESS_DENIED, True),
    errno.EPERM: (Status.ACCESS_DENIED, True),
    errno.EAGAIN: (Status.COMMAND_INTERRUPTED, False),  # "the host should retry"
    errno.EBUSY: (Status.COMMAND_INTERRUPTED, False),
    errno.EINTR: (Status.COMMAND_INTERRUPTED, False),
    errno.ENOMEM: (Status.COMMAND_INTERRUPTED, False),
    errno.ETIMEDOUT: (Status.COMMAND_INTERRUPTED, False),
    errno.EOPNOTSUPP: (Status.INVALID_OPCODE, True),
    errno.ENOSYS: (Status.INVALID_OPCODE, True),
}
_MEDIA: Final = frozenset({errno.EIO, errno.EREMOTEIO, errno.EILSEQ, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN})


def status_of_errno(error: OSError, *, write: bool) -> NvmeStatusError:
    """The status a command completes with after ``error``; ``write`` says which way the data went."""
    code = error.errno or errno.EIO
    if code in _MEDIA:
        status, dnr = (Status.WRITE_FAULT if write else Status.UNRECOVERED_READ_ERROR), False
    else:
        status, dnr = _BY_ERRNO.get(code, (Status.INTERNAL_ERROR, False))
    return NvmeStatusError(status, f"{errno.errorcode.get(code, code)}: {error.strerror or error}", dnr=dnr)
