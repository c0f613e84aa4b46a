/* SPDX-License-Identifier: BSD-3-Clause
 *
 * status.c: errno of a back end to NVMe status; the same table as nvmet_p2p/dataplane/inprocess/status.py.
 */
#include <errno.h>

#include "bdev.h"
#include "spec.h"

uint32_t status_of_errno(int error, bool write)
{
	error = error < 0 ? -error : error;
	if (error & BDEV_NVME)
		return (uint32_t)error & ~(uint32_t)BDEV_NVME;
	switch (error) {
	case EIO:
	case EREMOTEIO:
	case EILSEQ:
	case ENODATA:
	case EBADMSG:
	case EUCLEAN:
		return write ? ST_WRITE_FAULT : ST_READ_ERROR; /* a medium that failed once may answer the next time */
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return ST_CAPACITY | ST_DNR;
	case ENODEV:
	case ENXIO:
	case ENOMEDIUM:
	case ESHUTDOWN:
		return ST_NS_NOT_READY;
	case EROFS:
		return ST_WRITE_PROTECTED | ST_DNR;
	case EACCES:
	case EPERM:
		return ST_ACCESS_DENIED | ST_DNR;
	case EAGAIN:
	case EBUSY:
	case EINTR:
	case ENOMEM:
	case ETIMEDOUT:
		return ST_INTERRUPTED;
	case EOPNOTSUPP:
	case ENOSYS:
		return ST_INVALID_OPCODE | ST_DNR;
	default:
		return ST_INTERNAL;
	}
}
