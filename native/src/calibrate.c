/* SPDX-License-Identifier: BSD-3-Clause */
#include "calibrate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "bdev.h"
#include "common.h"
#include "crc32c.h"

#define MIB (1u << 20)
#define CPU_NS 5000000u     /* for each of the four figures, and each time */
#define CPU_ROUNDS 5
#define DRIVE_NS 150000000u /* for each of the two */
#define DRIVE_READS 256
#define BUFFERS 4           /* places in the pool that are probed */

struct region {
	uint64_t offset;
	uint32_t bytes;
	uint8_t *original, *want, *got;
};

static void refuse(struct dp_calibration *result, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void refuse(struct dp_calibration *result, const char *format, ...)
{
	va_list args;

	if (result->reason[0])
		return; /* the first one is the cause */
	va_start(args, format);
	vsnprintf(result->reason, sizeof(result->reason), format, args);
	va_end(args);
}

/* errno, or what an NVMe drive of SPDK's has answered. */
static const char *text_of(int rc)
{
	static _Thread_local char text[48];

	if (!(-rc & BDEV_NVME))
		return strerror(-rc);
	snprintf(text, sizeof(text), "NVMe status %03xh", (unsigned)-rc & 0x7FF);
	return text;
}

/* -- the drive */

static ssize_t fd_readv(struct calibrate_drive *drive, const struct iovec *iov, int n, uint64_t offset)
{
	ssize_t rc = preadv(drive->fd, iov, n, (off_t)offset);

	return rc < 0 ? -errno : rc;
}

static ssize_t fd_writev(struct calibrate_drive *drive, const struct iovec *iov, int n, uint64_t offset)
{
	ssize_t rc = pwritev(drive->fd, iov, n, (off_t)offset);

	return rc < 0 ? -errno : rc;
}

static int fd_flush(struct calibrate_drive *drive)
{
	return fdatasync(drive->fd) < 0 ? -errno : 0;
}

void calibrate_drive_init(struct calibrate_drive *drive, int fd)
{
	*drive = (struct calibrate_drive){ .readv = fd_readv, .writev = fd_writev, .flush = fd_flush, .fd = fd };
}

static bool cancelled(const struct calibrate_drive *drive)
{
	return drive->cancel && atomic_load(drive->cancel);
}

/* All of it; 0 or -errno. */
static int transfer(struct calibrate_drive *drive, bool write, const struct iovec *iov, int n, uint64_t offset)
{
	struct iovec left[POOL_PIECES_MAX];
	int at = 0;

	memcpy(left, iov, (size_t)n * sizeof(*iov));
	while (at < n) {
		ssize_t rc = (write ? drive->writev : drive->readv)(drive, left + at, n - at, offset);

		if (rc == -EINTR)
			continue;
		if (rc <= 0)
			return rc < 0 ? (int)rc : -EIO;
		offset += (uint64_t)rc;
		for (; at < n && (size_t)rc >= left[at].iov_len; at++)
			rc -= (ssize_t)left[at].iov_len;
		if (at < n) {
			left[at].iov_base = (uint8_t *)left[at].iov_base + rc;
			left[at].iov_len -= (size_t)rc;
		}
	}
	return 0;
}

static int transfer_host(struct calibrate_drive *drive, bool write, void *buf, uint32_t bytes, uint64_t offset)
{
	return transfer(drive, write, &(struct iovec){ buf, bytes }, 1, offset);
}

/* -- the pool */

/* The largest buffer there is, of at most that many bytes; NULL: no room now, or lost. */
static struct pool_buf *get_buffer(struct pool *pool, uint32_t bytes, uint32_t least)
{
	for (; bytes >= least; bytes = bytes / 2 / POOL_GRANULE * POOL_GRANULE) {
		struct pool_buf *buf = pool_get(pool, &(struct pool_want){ .bytes = bytes });

		if (buf)
			return buf;
		if (bytes <= POOL_GRANULE)
			break;
	}
	return NULL;
}

/* The pieces that hold bytes [from, from + length) of a buffer. */
static int slice(const struct pool_buf *buf, uint32_t from, uint32_t length, struct iovec *iov)
{
	int n = 0;

	for (uint32_t i = 0; i < buf->n && length; i++) {
		uint32_t here = (uint32_t)buf->iov[i].iov_len, take;

		if (from >= here) {
			from -= here;
			continue;
		}
		take = min_u32(here - from, length);
		iov[n++] = (struct iovec){ (uint8_t *)buf->iov[i].iov_base + from, take };
		from = 0;
		length -= take;
	}
	return n;
}

static void into_pool(const struct iovec *iov, int n, const uint8_t *from)
{
	for (int i = 0; i < n; from += iov[i++].iov_len)
		pool_copy(iov[i].iov_base, from, iov[i].iov_len);
}

static void out_of_pool(const struct iovec *iov, int n, uint8_t *to)
{
	for (int i = 0; i < n; to += iov[i++].iov_len)
		pool_copy(to, iov[i].iov_base, iov[i].iov_len);
}

static void lost(struct pool *pool, struct dp_calibration *result)
{
	refuse(result, "the pool was lost: %s", atomic_load(&pool->why));
}

/* What a system call with pool memory said. */
static void refuse_transfer(struct pool *pool, struct dp_calibration *result, const char *way, int rc)
{
	if (rc == -EFAULT)
		pool_lose(pool, "EFAULT: the kernel has taken its pages away");
	if (pool_is_lost(pool))
		lost(pool, result);
	else if (rc == -EINVAL || rc == -EREMOTEIO)
		refuse(result,
		       "%s: the kernel refuses it (%s): no way peer to peer between provider and drive that it knows to "
		       "work; dmesg may tell more",
		       way, strerror(-rc));
	else
		refuse(result, "%s: %s", way, text_of(rc));
}

/* -- patterns: a word tells its place and its round */

static uint64_t mix(uint64_t x)
{
	x += 0x9E3779B97F4A7C15u;
	x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
	x = (x ^ x >> 27) * 0x94D049BB133111EBu;
	return x ^ x >> 31;
}

static void pattern(uint8_t *to, uint32_t bytes, uint64_t seed)
{
	for (uint32_t at = 0; at < bytes; at += sizeof(seed)) {
		uint64_t word = mix(seed + at);

		memcpy(to + at, &word, sizeof(word));
	}
}

static bool same(const char *what, const uint8_t *want, const uint8_t *got, uint32_t bytes, struct dp_calibration *result)
{
	uint32_t differ = 0, first = 0;

	for (uint32_t i = bytes; i-- > 0;)
		if (want[i] != got[i]) {
			differ++;
			first = i;
		}
	if (differ)
		refuse(result, "%s: %u of %u bytes arrived wrong, the first at %u, and no error was reported", what, differ,
		       bytes, first);
	return differ == 0;
}

/* -- one buffer, both ways */

static const char to_drive[] = "pool to drive", to_pool[] = "drive to pool";

/* The drive reads the pool. Comes first: if it goes astray, nothing is overwritten that is not ours. */
static bool prove_to_drive(struct pool *pool, struct calibrate_drive *drive, struct region *region, const struct iovec *iov,
			   int n, uint32_t bytes, uint64_t seed, struct dp_calibration *result)
{
	int rc;

	pattern(region->want, bytes, seed);
	memset(region->got, 0, bytes);
	into_pool(iov, n, region->want);
	if (!pool_check(pool)) { /* and the CPU's writes have arrived */
		lost(pool, result);
		return false;
	}
	rc = transfer(drive, true, iov, n, region->offset);
	if (rc < 0) {
		refuse_transfer(pool, result, to_drive, rc);
		return false;
	}
	rc = transfer_host(drive, false, region->got, bytes, region->offset);
	if (rc < 0) {
		refuse(result, "%s: it cannot be read back: %s", to_drive, text_of(rc));
		return false;
	}
	if (!pool_check(pool)) {
		lost(pool, result);
		return false;
	}
	return same(to_drive, region->want, region->got, bytes, result);
}

/* The drive writes the pool, and nothing beside it: a granule before and one behind keep what they hold. */
static bool prove_to_pool(struct pool *pool, struct calibrate_drive *drive, struct region *region, const struct pool_buf *buf,
			  uint32_t guard, uint32_t bytes, uint64_t seed, struct dp_calibration *result)
{
	struct iovec whole[POOL_PIECES_MAX], iov[POOL_PIECES_MAX];
	int n_whole = slice(buf, 0, buf->bytes, whole), n = slice(buf, guard, bytes, iov), rc;

	pattern(region->want, buf->bytes, ~seed);
	into_pool(whole, n_whole, region->want);
	pattern(region->want + guard, bytes, seed);
	rc = transfer_host(drive, true, region->want + guard, bytes, region->offset);
	if (rc < 0) {
		refuse(result, "%s: the pattern cannot be written: %s", to_pool, text_of(rc));
		return false;
	}
	rc = transfer(drive, false, iov, n, region->offset);
	if (rc < 0) {
		refuse_transfer(pool, result, to_pool, rc);
		return false;
	}
	out_of_pool(whole, n_whole, region->got);
	if (!pool_check(pool)) {
		lost(pool, result);
		return false;
	}
	return same(to_pool, region->want, region->got, buf->bytes, result);
}

static void prove(struct pool *pool, struct calibrate_drive *drive, struct region *region, struct dp_calibration *result)
{
	const uint32_t least = drive->block_size > POOL_GRANULE ? drive->block_size : POOL_GRANULE;
	struct pool_buf *bufs[BUFFERS];
	struct iovec iov[POOL_PIECES_MAX];
	unsigned n = 0;
	uint64_t seed;

	if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
		seed = dp_now_ns();
	/* All at a time, so that they lie in different places. */
	while (n < BUFFERS && (bufs[n] = get_buffer(pool, region->bytes + 2 * POOL_GRANULE, least + 2 * POOL_GRANULE)))
		n++;
	if (n == 0 && !(bufs[n] = get_buffer(pool, least, least)))
		refuse(result, pool_is_lost(pool) ? "the pool was lost" : "the pool has no room for %u bytes now", least);
	else
		n += n == 0;
	for (unsigned i = 0; i < n && !result->reason[0]; i++) {
		uint32_t guard = bufs[i]->bytes > least ? POOL_GRANULE : 0;
		uint32_t bytes = (bufs[i]->bytes - 2 * guard) / drive->block_size * drive->block_size;
		int pieces = slice(bufs[i], guard, bytes, iov);

		if (cancelled(drive))
			refuse(result, "cancelled");
		else if (prove_to_drive(pool, drive, region, iov, pieces, bytes, seed + 4ull * i * MIB, result))
			prove_to_pool(pool, drive, region, bufs[i], guard, bytes, seed + (4ull * i + 2) * MIB, result);
	}
	while (n-- > 0)
		pool_put(bufs[n]);
}

/* -- the journal */

static int sync_folder(const char *path)
{
	char folder[1024] = ".";
	const char *slash = strrchr(path, '/');
	int fd, rc;

	if (slash)
		snprintf(folder, sizeof(folder), "%.*s", slash == path ? 1 : (int)(slash - path), path);
	fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	rc = fd < 0 || fsync(fd) < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	return rc;
}

static int write_all(int fd, const void *bytes, size_t length)
{
	const uint8_t *at = bytes;

	while (length) {
		ssize_t n = write(fd, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENOSPC;
		at += n;
		length -= (size_t)n;
	}
	return 0;
}

static void journal_header(struct pool *pool, const struct calibrate_drive *drive, const struct region *region,
			   struct calibrate_journal *header)
{
	char link[64];

	memset(header, 0, sizeof(*header));
	memcpy(header->magic, "nvmet-p2p probe\n", sizeof(header->magic));
	header->version = htole32(1);
	header->offset = htole64(region->offset);
	header->length = htole64(region->bytes);
	header->drive_bytes = htole64(drive->bytes);
	snprintf(header->bdev, sizeof(header->bdev), "%s", drive->name);
	snprintf(header->pool, sizeof(header->pool), "%s", pool_name(pool));
	snprintf(link, sizeof(link), "/proc/self/fd/%d", drive->fd);
	if (drive->fd < 0)
		memcpy(header->path, drive->medium, sizeof(header->path));
	else if (readlink(link, header->path, sizeof(header->path) - 1) < 0)
		header->path[0] = 0;
	header->crc = htole32(crc32c(crc32c(0, header, sizeof(*header)), region->original, region->bytes));
}

static int journal_fill(int fd, struct pool *pool, const struct calibrate_drive *drive, const struct region *region)
{
	struct calibrate_journal header;
	int rc;

	journal_header(pool, drive, region, &header);
	rc = write_all(fd, &header, sizeof(header));
	if (rc == 0)
		rc = write_all(fd, region->original, region->bytes);
	return rc == 0 && fsync(fd) < 0 ? -errno : rc;
}

/* It gets its name when it is whole, and is there after a power failure, before anything is overwritten. */
static bool journal_write(struct pool *pool, const struct calibrate_drive *drive, const struct region *region,
			  struct dp_calibration *result)
{
	char fresh[1024];
	int fd, rc = -ENAMETOOLONG;

	if (snprintf(fresh, sizeof(fresh), "%s.new", drive->journal) < (int)sizeof(fresh)) {
		fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		rc = fd < 0 ? -errno : journal_fill(fd, pool, drive, region);
		if (rc == 0 && link(fresh, drive->journal) < 0) /* fails where there is one, unlike rename */
			rc = -errno;
		if (fd >= 0) {
			close(fd);
			unlink(fresh);
		}
		if (rc == 0) {
			rc = sync_folder(drive->journal);
			if (rc < 0)
				unlink(drive->journal); /* nothing has been overwritten yet */
		}
	}
	if (rc == -EEXIST)
		refuse(result, "%.150s is there: the blocks of an earlier probe have to be put back first", drive->journal);
	else if (rc < 0)
		refuse(result, "the journal %.150s cannot be written: %s", drive->journal, strerror(-rc));
	return rc == 0;
}

/* -- the whole */

/* Until it is there again, or it cannot be. */
static int put_back(struct calibrate_drive *drive, struct region *region)
{
	int rc = -EIO;

	for (int i = 0; i < 3 && rc < 0; i++) {
		rc = transfer_host(drive, true, region->original, region->bytes, region->offset);
		if (rc == 0)
			rc = drive->flush(drive);
		if (rc == 0)
			rc = transfer_host(drive, false, region->got, region->bytes, region->offset);
		if (rc == 0 && memcmp(region->got, region->original, region->bytes) != 0)
			rc = -EILSEQ;
	}
	return rc;
}

static int verify_region(struct pool *pool, struct calibrate_drive *drive, struct region *region,
			 struct dp_calibration *result)
{
	int rc = transfer_host(drive, false, region->original, region->bytes, region->offset);

	if (rc < 0) {
		refuse(result, "the drive cannot be read: %s", text_of(rc));
		return 0;
	}
	if (!journal_write(pool, drive, region, result))
		return 0;
	prove(pool, drive, region, result);
	rc = put_back(drive, region);
	if (rc < 0) {
		snprintf(result->reason, sizeof(result->reason),
			 "%u bytes at %llu of the drive could not be put back (%.40s): they are in %.120s", region->bytes,
			 (unsigned long long)region->offset, text_of(rc), drive->journal);
		return -EIO;
	}
	if (unlink(drive->journal) < 0 || sync_folder(drive->journal) < 0)
		refuse(result, "the journal %.150s cannot be removed: %s", drive->journal, strerror(errno));
	result->verified = !result->reason[0];
	return 0;
}

int calibrate_verify(struct pool *pool, struct calibrate_drive *drive, struct dp_calibration *result)
{
	const uint64_t most = min_u64(CALIBRATE_REGION, drive->bytes);
	struct region region = { .bytes = (uint32_t)(most / drive->block_size * drive->block_size) };
	const size_t room = region.bytes + 2 * POOL_GRANULE;
	uint8_t *memory;
	int rc = 0;

	result->verified = false;
	if (!region.bytes) {
		refuse(result, "the drive has no whole block, or larger ones than %u bytes", CALIBRATE_REGION);
		return 0;
	}
	region.offset = (drive->bytes - region.bytes) / 2 / drive->block_size * drive->block_size;
	if (region.offset > MIB)
		region.offset = region.offset / MIB * MIB; /* still whole blocks: they are powers of two up to that */
	memory = mmap(NULL, 3 * room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		refuse(result, "no memory");
		return 0;
	}
	region.original = memory;
	region.want = memory + room;
	region.got = memory + 2 * room;
	rc = verify_region(pool, drive, &region, result);
	munmap(memory, 3 * room);
	return rc;
}

/* -- after a crash, where no file leads to the drive */

static int journal_read(int fd, void *to, size_t length)
{
	ssize_t n = read(fd, to, length);

	return n < 0 ? -errno : (size_t)n == length ? 0 : -EUCLEAN;
}

/* The bytes that belong to the drive, for the caller to free; NULL with *rc. */
static uint8_t *journal_load(int fd, struct calibrate_drive *drive, struct calibrate_journal *header, int *rc,
			     char err[DP_ERR_MAX])
{
	uint64_t length;
	uint8_t *bytes;
	uint32_t crc;

	*rc = journal_read(fd, header, sizeof(*header));
	length = le64toh(header->length);
	if (*rc == 0 && (memcmp(header->magic, "nvmet-p2p probe\n", sizeof(header->magic)) != 0 ||
			 le32toh(header->version) != 1 || length == 0 || length > CALIBRATE_REGION))
		*rc = -EUCLEAN;
	bytes = *rc == 0 ? malloc(length) : NULL;
	if (bytes)
		*rc = journal_read(fd, bytes, length);
	if (bytes && *rc == 0) {
		crc = le32toh(header->crc);
		header->crc = 0;
		if (crc32c(crc32c(0, header, sizeof(*header)), bytes, length) != crc)
			*rc = -EUCLEAN;
	}
	if (*rc < 0)
		snprintf(err, DP_ERR_MAX, "the journal %.150s %s", drive->journal,
			 *rc == -EUCLEAN ? "is damaged" : "cannot be read");
	else if (!bytes)
		*rc = -ENOMEM;
	if (*rc == 0)
		return bytes;
	free(bytes);
	return NULL;
}

static bool is_its_drive(const struct calibrate_drive *drive, const struct calibrate_journal *header, char err[DP_ERR_MAX])
{
	uint64_t offset = le64toh(header->offset), length = le64toh(header->length);

	if (strncmp(header->path, drive->medium, sizeof(header->path)) != 0) {
		snprintf(err, DP_ERR_MAX, "the journal %.80s is of another drive (%.60s), not of this one (%.60s)", drive->journal,
			 header->path, drive->medium);
		return false;
	}
	if (le64toh(header->drive_bytes) == drive->bytes && offset <= drive->bytes && length <= drive->bytes - offset &&
	    offset % drive->block_size == 0 && length % drive->block_size == 0)
		return true;
	snprintf(err, DP_ERR_MAX, "the drive has another size than when the journal %.100s was written", drive->journal);
	return false;
}

static int restore(int fd, struct calibrate_drive *drive, char err[DP_ERR_MAX])
{
	struct calibrate_journal header;
	struct region region;
	int rc;

	region.original = journal_load(fd, drive, &header, &rc, err);
	if (!region.original)
		return rc;
	region.offset = le64toh(header.offset);
	region.bytes = (uint32_t)le64toh(header.length);
	region.got = malloc(region.bytes);
	rc = !region.got ? -ENOMEM : is_its_drive(drive, &header, err) ? put_back(drive, &region) : -EUCLEAN;
	if (rc == 0 && (unlink(drive->journal) < 0 || sync_folder(drive->journal) < 0))
		rc = -errno;
	if (rc < 0 && !err[0])
		snprintf(err, DP_ERR_MAX, "what the journal %.150s holds cannot be put back: %s", drive->journal, text_of(rc));
	free(region.original);
	free(region.got);
	return rc;
}

int calibrate_restore(struct calibrate_drive *drive, char err[DP_ERR_MAX])
{
	int fd = open(drive->journal, O_RDONLY | O_CLOEXEC), rc;

	err[0] = 0;
	if (fd < 0) {
		rc = -errno;
		snprintf(err, DP_ERR_MAX, "the journal %.150s: %s", drive->journal, strerror(-rc));
		return rc;
	}
	rc = restore(fd, drive, err);
	close(fd);
	return rc < 0 && -rc & BDEV_NVME ? -EIO : rc;
}

/* -- how fast: as the kernel copies between sockets and our memory, so what counts is its way of touching the pool */

static double mib_s(uint64_t bytes, uint64_t ns)
{
	return ns ? (double)bytes / MIB / ((double)ns / 1e9) : 0;
}

/* For a while, once at least; the best copy counts, as others may have had the CPU during the rest. -errno. */
static int measure_cpu(int fd, bool write, const struct iovec *iov, int n, uint32_t bytes, double *speed)
{
	uint64_t start = dp_now_ns(), before = start, now;

	do {
		ssize_t rc = write ? preadv(fd, iov, n, 0) : pwritev(fd, iov, n, 0);
		double found;

		if (rc != (ssize_t)bytes)
			return rc < 0 ? -errno : -EIO;
		now = dp_now_ns();
		found = mib_s(bytes, now - before);
		if (found > *speed)
			*speed = found;
		before = now;
	} while (now - start < CPU_NS);
	return 0;
}

static int measure_round(int fd, const struct iovec *host, const struct pool_buf *buf, struct dp_calibration *result)
{
	int n = (int)buf->n, rc = measure_cpu(fd, true, host, 1, buf->bytes, &result->host_write_mib_s);

	if (rc == 0)
		rc = measure_cpu(fd, true, buf->iov, n, buf->bytes, &result->cpu_write_mib_s);
	if (rc == 0)
		rc = measure_cpu(fd, false, host, 1, buf->bytes, &result->host_read_mib_s);
	return rc == 0 ? measure_cpu(fd, false, buf->iov, n, buf->bytes, &result->cpu_read_mib_s) : rc;
}

void calibrate_cpu(struct pool *pool, struct dp_calibration *result)
{
	struct pool_buf *buf = get_buffer(pool, MIB, POOL_GRANULE);
	struct iovec host = { .iov_base = MAP_FAILED };
	int fd = -1, rc = 0;

	if (!buf) {
		refuse(result, pool_is_lost(pool) ? "the pool was lost" : "the pool has no room now");
		return;
	}
	host.iov_len = buf->bytes;
	host.iov_base = mmap(NULL, buf->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	fd = memfd_create("nvmet-p2p calibration", MFD_CLOEXEC);
	if (host.iov_base == MAP_FAILED || fd < 0 || pwritev(fd, &host, 1, 0) != (ssize_t)buf->bytes) {
		refuse(result, "no memory");
	} else {
		for (int i = 0; i < CPU_ROUNDS && rc == 0; i++)
			rc = measure_round(fd, &host, buf, result);
		if (rc < 0)
			refuse_transfer(pool, result, "the CPU", rc);
		else if (!pool_check(pool))
			lost(pool, result);
	}
	if (fd >= 0)
		close(fd);
	if (host.iov_base != MAP_FAILED)
		munmap(host.iov_base, host.iov_len);
	pool_put(buf);
}

static int by_size(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static double median_mib_s(uint64_t *ns, unsigned n, uint64_t bytes)
{
	qsort(ns, n, sizeof(*ns), by_size);
	return n ? mib_s(bytes, ns[n / 2]) : 0;
}

/* The same blocks into the pool and into host memory, now the one first and now the other. */
void calibrate_bandwidth(struct pool *pool, struct calibrate_drive *drive, struct dp_calibration *result)
{
	const uint32_t least = drive->block_size > POOL_GRANULE ? drive->block_size : POOL_GRANULE;
	struct pool_buf *buf = get_buffer(pool, MIB, least);
	uint64_t ns[2][DRIVE_READS], total = 0, chunks, length;
	uint8_t *host;
	struct iovec iov[POOL_PIECES_MAX];
	unsigned reads = 0;
	int n, rc = 0;

	if (!buf) {
		refuse(result, "the pool has no room now");
		return;
	}
	length = min_u64(buf->bytes, drive->bytes) / drive->block_size * drive->block_size;
	n = slice(buf, 0, (uint32_t)length, iov);
	host = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	chunks = drive->bytes / (length ? length : 1);
	while (host != MAP_FAILED && length && rc == 0 && reads < DRIVE_READS && total < 2 * DRIVE_NS && !cancelled(drive)) {
		for (unsigned k = 0; k < 2 && rc == 0; k++) {
			unsigned which = (reads + k) & 1; /* 0: the pool */
			uint64_t start = dp_now_ns(), at = reads % chunks * length;

			rc = which ? transfer_host(drive, false, host, (uint32_t)length, at) : transfer(drive, false, iov, n, at);
			ns[which][reads] = dp_now_ns() - start;
			total += ns[which][reads];
		}
		reads++;
	}
	if (rc < 0) {
		refuse_transfer(pool, result, to_pool, rc);
	} else {
		result->drive_to_pool_mib_s = median_mib_s(ns[0], reads, length);
		result->drive_to_host_mib_s = median_mib_s(ns[1], reads, length);
	}
	if (host != MAP_FAILED)
		munmap(host, MIB);
	pool_put(buf);
}
