/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pools of peer memory: memory that goes away, whose an address is, where the memory comes from.
 */
#include "pool_rig.h"

/* -- loss */

static atomic_uint lost_calls;

static void on_lost(void)
{
	atomic_fetch_add(&lost_calls, 1);
}

static void await_lost_call(void)
{
	while (!atomic_load(&lost_calls))
		sched_yield();
}

static void memory_that_goes_away_becomes_zeroes(void **state)
{
	struct pool *pool = open_pool("p", 8);
	struct pool_buf *buf = get(pool, 8, NULL);
	volatile uint8_t *bytes = buf->iov[0].iov_base;
	struct wait wait;

	atomic_store(&lost_calls, 0);
	assert_int_equal(pool_watch_start(on_lost), 0);
	memset((void *)bytes, 0xA5, 8 * G);
	assert_true(pool_check(pool));
	wait_for(pool, &wait, 1, &reactors[0]);
	assert_int_equal(ftruncate(pool->fd, 0), 0); /* as an unbound driver does to the mapping */
	assert_int_equal(bytes[7 * G], 0); /* SIGBUS, and again */
	assert_true(pool_is_lost(pool));
	bytes[0] = 1; /* whatever is in progress goes on */
	assert_int_equal(bytes[0], 1);
	assert_false(pool_check(pool));
	assert_false(pool_check(pool));
	await_lost_call();
	run_inboxes();
	assert_int_equal(wait.calls, 1);
	assert_null(wait.buf);
	assert_null(get(pool, 1, NULL));
	assert_non_null(strstr(atomic_load(&pool->why), "SIGBUS"));
	pool_put(buf);
	pool_watch_stop();
	close_pool(pool);
}

static void a_system_call_that_met_the_hole_is_repeated(void **state)
{
	struct pool *pool = open_pool("p", 8);
	struct pool_buf *buf = get(pool, 8, NULL);
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(ftruncate(pool->fd, 0), 0);
	assert_int_equal(send(fds[0], buf->iov[0].iov_base, G, MSG_DONTWAIT), -1);
	assert_int_equal(errno, EFAULT);
	pool_lose(pool, "EFAULT");
	pool_lose(pool, "again");
	assert_string_equal(atomic_load(&pool->why), "EFAULT");
	assert_int_equal(send(fds[0], buf->iov[0].iov_base, G, MSG_DONTWAIT), G);
	assert_false(pool_check(pool));
	close(fds[0]);
	close(fds[1]);
	pool_put(buf);
	close_pool(pool);
}

static void the_canary_tells_of_a_reset(void **state)
{
	static const uint64_t becomes[] = { 0, UINT64_MAX, 0x1234567890ABCDEF };

	for (size_t i = 0; i < DP_ARRAY_LEN(becomes); i++) {
		struct pool *pool = open_pool("p", 2);
		struct pool_buf *buf = get(pool, 1, NULL);

		*(uint8_t *)buf->iov[0].iov_base = 1;
		assert_true(pool_check(pool));
		*(volatile uint64_t *)pool->base = becomes[i];
		assert_false(pool_is_lost(pool)); /* nobody has looked yet */
		assert_false(pool_check(pool));
		assert_true(pool_is_lost(pool));
		assert_int_equal(*(uint8_t *)buf->iov[0].iov_base, 0);
		assert_non_null(strstr(atomic_load(&pool->why), becomes[i] == UINT64_MAX ? "gone" : "reset"));
		pool_put(buf);
		close_pool(pool);
	}
}

static void lost_while_it_was_wiped(void **state)
{
	struct pool *pool = open_pool("p", 2);

	pool_put(pool_get(pool, &(struct pool_want){ .bytes = 2 * G, .owner = 5 }));
	assert_int_equal(ftruncate(pool->fd, 0), 0);
	assert_null(pool_get(pool, &(struct pool_want){ .bytes = 2 * G, .owner = 6, .wipe = true }));
	assert_int_equal(pool->in_use, 0);
	assert_true(pool_is_lost(pool));
	close_pool(pool);
}

struct toucher {
	struct pool_buf *buf;
	pthread_t thread;
	atomic_bool touching;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;
	volatile uint8_t *bytes = t->buf->iov[0].iov_base;

	while (!pool_is_lost(t->buf->pool)) {
		for (size_t at = 0; at < t->buf->bytes; at += G)
			bytes[at] = (uint8_t)at;
		atomic_store(&t->touching, true);
	}
	for (size_t at = 0; at < t->buf->bytes; at += G) /* all of it can be touched, for both */
		bytes[at] = 1;
	return NULL;
}

static void two_threads_fall_into_the_hole_at_once(void **state)
{
	for (int turn = 0; turn < 50; turn++) {
		struct pool *pool = open_pool("p", 64);
		struct toucher touchers[2];

		for (int i = 0; i < 2; i++) {
			touchers[i].buf = get(pool, 32, NULL);
			atomic_init(&touchers[i].touching, false);
			assert_int_equal(pthread_create(&touchers[i].thread, NULL, touch, &touchers[i]), 0);
		}
		while (!atomic_load(&touchers[0].touching) || !atomic_load(&touchers[1].touching))
			sched_yield();
		assert_int_equal(ftruncate(pool->fd, 0), 0);
		for (int i = 0; i < 2; i++) {
			pthread_join(touchers[i].thread, NULL);
			pool_put(touchers[i].buf);
		}
		assert_false(pool_check(pool));
		close_pool(pool);
	}
}

/* A SIGBUS outside of all pools ends the process, as without us. Sent ones too. */
static void other_faults_are_not_ours(void **state)
{
	struct pool *pool = open_pool("p", 2);

	for (int sent = 0; sent < 2; sent++) {
		pid_t child = fork();
		int status;

		if (child == 0) {
			int fd = memfd_create("x", 0);
			volatile char *hole = mmap(NULL, G, PROT_READ, MAP_SHARED, fd, 0);

			signal(SIGBUS, SIG_DFL); /* not cmocka's, nor a sanitizer's */
			open_pool("installs the handler over it", 1);
			if (sent)
				raise(SIGBUS);
			else
				(void)*hole;
			_exit(0);
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	}
	assert_false(pool_is_lost(pool));
	close_pool(pool);
}

/* -- the lookup */

static void an_address_is_found_in_log_n(void **state)
{
	struct pool *pools[POOLS_MAX];
	char name[16], err[DP_ERR_MAX];
	int rc;

	for (unsigned n = 1; n <= POOLS_MAX; n++) {
		unsigned most = 0, bound = 2 + (n > 1 ? 32u - (unsigned)__builtin_clz(n - 1) : 0); /* 2 + log2 n */

		snprintf(name, sizeof(name), "p%u", n);
		pools[n - 1] = open_pool(name, n % 5 + 1);
		for (unsigned i = 0; i < n; i++) {
			uint8_t *base = pools[i]->base;
			const uint8_t *in[] = { base, base + 1, base + pools[i]->bytes - 1 };
			unsigned steps;

			for (size_t k = 0; k < DP_ARRAY_LEN(in); k++) {
				assert_ptr_equal(pool_of_counted(in[k], &steps), pools[i]);
				most = steps > most ? steps : most;
			}
			assert_ptr_not_equal(pool_of(base - 1), pools[i]);
			assert_ptr_not_equal(pool_of(base + pools[i]->bytes), pools[i]);
		}
		assert_true(most <= bound);
	}
	assert_null(pool_of(NULL));
	assert_null(pool_of((void *)UINTPTR_MAX));
	assert_null(pool_of(name));
	struct dp_pool_config config = { .name = "one more", .kind = DP_POOL_EMULATED, .bytes = 2 * G };

	assert_null(pool_open(&config, false, &rc, err));
	assert_int_equal(rc, -ENOSPC);
	/* How long that takes, for people: not judged here. */
	uint64_t start = dp_now_ns();
	uintptr_t sum = 0;

	for (unsigned i = 0; i < 1000000; i++)
		sum += (uintptr_t)pool_of(pools[i * 7919 % POOLS_MAX]->base + i % G);
	print_message("lookup among %u pools: %.1f ns (sum %u)\n", POOLS_MAX, (double)(dp_now_ns() - start) / 1e6,
		      (unsigned)sum & 1);
	for (unsigned i = 0; i < POOLS_MAX; i++)
		close_pool(pools[i]);
}

/* -- opening */

static void write_file(const char *path, const char *text, off_t size)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	if (text)
		assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	if (size)
		assert_int_equal(ftruncate(fd, size), 0);
	close(fd);
}

/* A file in the place of the kernel's p2pmem/allocate: the mapping is the same. */
static void a_p2pmem_pool_takes_what_is_available(void **state)
{
	char folder[] = "/tmp/test_pool.XXXXXX", allocate[64], available[64], err[DP_ERR_MAX];
	struct dp_pool_config config = { .name = "0000:03:00.0", .kind = DP_POOL_P2PMEM, .path = allocate };
	struct pool *pool;
	int rc;

	assert_non_null(mkdtemp(folder));
	snprintf(allocate, sizeof(allocate), "%s/allocate", folder);
	snprintf(available, sizeof(available), "%s/available", folder);
	assert_null(pool_open(&config, false, &rc, err));
	assert_int_equal(rc, -ENOENT);
	assert_non_null(strstr(err, allocate));
	write_file(allocate, NULL, 1 << 20);
	assert_null(pool_open(&config, false, &rc, err)); /* nothing says how much there is */
	assert_int_equal(rc, -ENOMEM);
	write_file(available, "66000\n", 0);
	pool = pool_open(&config, false, &rc, err);
	assert_non_null(pool);
	assert_int_equal(pool->bytes, 16 * G);
	/* What a device's memory held before is unknown: wiped for a reader. */
	pool_put(pool_get(pool, &(struct pool_want){ .bytes = 15 * G, .owner = 1, .wipe = true }));
	assert_int_equal(atomic_load(&pool->wiped_bytes), 15 * G);
	assert_null(pool_open(&config, false, &rc, err));
	assert_int_equal(rc, -EEXIST);
	close_pool(pool);
	config.bytes = 8 * G;
	pool = pool_open(&config, false, &rc, err);
	assert_int_equal(pool->bytes, 8 * G);
	close_pool(pool);
	config.bytes = G;
	assert_null(pool_open(&config, false, &rc, err));
	assert_int_equal(rc, -EINVAL);
	unlink(allocate);
	unlink(available);
	rmdir(folder);
}

static void always_wiped_if_asked(void **state)
{
	struct dp_pool_config config = { .name = "p", .kind = DP_POOL_EMULATED, .bytes = 3 * G, .wipe_always = true };
	char err[DP_ERR_MAX];
	int rc;
	struct pool *pool = pool_open(&config, false, &rc, err);

	pool_put(pool_get(pool, &(struct pool_want){ .bytes = G, .owner = 1 }));
	pool_put(pool_get(pool, &(struct pool_want){ .bytes = G, .owner = 2 }));
	assert_int_equal(atomic_load(&pool->wiped_bytes), G);
	close_pool(pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(memory_that_goes_away_becomes_zeroes, setup),
		cmocka_unit_test_setup(a_system_call_that_met_the_hole_is_repeated, setup),
		cmocka_unit_test_setup(the_canary_tells_of_a_reset, setup),
		cmocka_unit_test_setup(lost_while_it_was_wiped, setup),
		cmocka_unit_test_setup(two_threads_fall_into_the_hole_at_once, setup),
		cmocka_unit_test_setup(other_faults_are_not_ours, setup),
		cmocka_unit_test_setup(an_address_is_found_in_log_n, setup),
		cmocka_unit_test_setup(a_p2pmem_pool_takes_what_is_available, setup),
		cmocka_unit_test_setup(always_wiped_if_asked, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
