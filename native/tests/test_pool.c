/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pools of peer memory: granules, buffers, fair shares, waiting, wiping. Built with DP_TEST_HOOKS.
 */
#include "pool_rig.h"

/* -- granules: everything that is taken comes from what is free, and comes together again */

struct held {
	struct space_run runs[POOL_PIECES_MAX];
	uint32_t n, granules;
};

#define HELD_MAX 200

static void mark(uint8_t *used, const struct held *held, bool take)
{
	for (uint32_t i = 0; i < held->n; i++)
		for (uint32_t g = held->runs[i].at; g < held->runs[i].at + held->runs[i].n; g++) {
			assert_int_equal(used[g], !take);
			used[g] = take;
		}
}

/* The longest run that is free, by looking. */
static uint32_t longest_free(const uint8_t *used, uint32_t n)
{
	uint32_t longest = 0, run = 0;

	for (uint32_t g = 0; g < n; g++) {
		run = used[g] ? 0 : run + 1;
		longest = run > longest ? run : longest;
	}
	return longest;
}

static void give(struct space *space, uint8_t *used, struct held *held)
{
	mark(used, held, false);
	for (uint32_t i = 0; i < held->n; i++)
		space_give(space, held->runs[i].at, held->runs[i].n);
	memset(held, 0, sizeof(*held));
}

static void random_life(uint32_t n, uint32_t most, uint32_t steps, uint64_t seed)
{
	struct held held[HELD_MAX] = { 0 };
	uint8_t *used = calloc(n, 1);
	struct space space;

	random_state = seed;
	assert_non_null(used);
	assert_int_equal(space_init(&space, n), 0);
	for (uint32_t step = 0; step < steps; step++) {
		struct held *one = &held[rnd(HELD_MAX)];
		uint32_t want = 1 + rnd(most), free_before = space.free, longest = longest_free(used, n);

		if (one->n) {
			give(&space, used, one);
			continue;
		}
		one->n = space_take(&space, want, one->runs, POOL_PIECES_MAX);
		one->granules = want;
		for (uint32_t i = 0, sum = 0; i < one->n; i++) {
			sum += one->runs[i].n;
			if (i + 1 == one->n)
				assert_int_equal(sum, want);
		}
		if (one->n == 0)
			assert_true(want > free_before || longest * POOL_PIECES_MAX < want || longest < want);
		else if (longest >= want)
			assert_int_equal(one->n, 1); /* contiguous where a run is free */
		else
			assert_true(one->n > 1);
		mark(used, one, true);
		assert_true(space_sound(&space));
	}
	for (size_t i = 0; i < HELD_MAX; i++)
		if (held[i].n)
			give(&space, used, &held[i]);
	assert_true(space_sound(&space));
	assert_int_equal(space.free, n);
	assert_int_equal(longest_free(used, n), n);
	assert_int_equal(space_take(&space, n, held[0].runs, 1), 1); /* all of it in one piece again */
	space_fini(&space);
	free(used);
}

static void granules_are_never_lost_or_given_twice(void **state)
{
	for (uint64_t seed = 1; seed <= 8; seed++) {
		random_life(127, 32, 3000, seed);
		random_life(512, 64, 1500, seed);
		random_life(4096, 900, 600, seed); /* runs of bins that hold several lengths */
	}
}

static void best_fit_leaves_long_runs_whole(void **state)
{
	struct space_run runs[4], one;
	struct space space;

	/* Free: 8, 3 and 100 granules, used ones between. */
	assert_int_equal(space_init(&space, 113), 0);
	assert_int_equal(space_take(&space, 113, &one, 1), 1);
	space_give(&space, 0, 8);
	space_give(&space, 9, 3);
	space_give(&space, 13, 100);
	assert_int_equal(space_take(&space, 3, runs, 1), 1);
	assert_int_equal(runs[0].at, 9);
	assert_int_equal(space_take(&space, 5, runs, 1), 1);
	assert_int_equal(runs[0].at, 0);
	assert_int_equal(space_largest(&space), 100);
	/* 102 granules in the fewest pieces: the longest run, then what fits the rest. */
	assert_int_equal(space_take(&space, 102, runs, 1), 0);
	assert_int_equal(space.free, 103);
	assert_int_equal(space_take(&space, 102, runs, 4), 2);
	assert_int_equal(runs[0].at, 13);
	assert_int_equal(runs[0].n, 100);
	assert_int_equal(runs[1].at, 5);
	assert_true(space_sound(&space));
	space_fini(&space);
}

static void a_buffer_may_lie_in_32_pieces_and_not_in_33(void **state)
{
	struct pool *pool = open_pool("p", 80);
	struct pool_buf *single[80], *buf;

	for (size_t i = 0; i < 80; i++)
		assert_non_null(single[i] = get(pool, 1, NULL));
	assert_null(get(pool, 1, NULL));
	for (size_t i = 0; i < 80; i += 2)
		pool_put(single[i]); /* 40 free runs of one granule */
	assert_null(get(pool, 33, NULL));
	buf = pool_get(pool, &(struct pool_want){ .bytes = 31 * G + 512 });
	assert_non_null(buf);
	assert_int_equal(buf->n, 32);
	assert_int_equal(buf->granules, 32);
	assert_int_equal(buf->iov[31].iov_len, 512);
	for (uint32_t i = 0; i < 32; i++) {
		assert_int_equal((uintptr_t)buf->iov[i].iov_base % G, 0);
		assert_ptr_equal(pool_of(buf->iov[i].iov_base), pool);
	}
	pool_put(buf);
	for (size_t i = 1; i < 80; i += 2)
		pool_put(single[i]);
	buf = get(pool, 80, NULL);
	assert_int_equal(buf->n, 1);
	assert_ptr_equal(buf->iov[0].iov_base, pool->base + G); /* the canary has the first granule */
	assert_null(get(pool, 1, NULL));
	pool_put(buf);
	assert_true(pool_possible(pool, 80 * G));
	assert_false(pool_possible(pool, 80 * G + 1));
	close_pool(pool);
}

/* -- fair shares */

static void a_pool_is_shared_between_queues(void **state)
{
	static struct pool_user users[3];
	struct pool *pool = open_pool("p", 60);
	struct pool_buf *bufs[60];
	unsigned n = 0, more = 0;

	memset(users, 0, sizeof(users));
	/* One queue alone may have all of it. */
	while (n < 60 && (bufs[n] = get(pool, 1, &users[0])))
		n++;
	assert_int_equal(n, 60);
	/* A second one asks, and gets nothing: nothing is free. From now on the first one gets none of what it gives back,
	 * until the second could have had its half. */
	assert_null(get(pool, 1, &users[1]));
	for (unsigned i = 0; i < 30; i++)
		pool_put(bufs[--n]);
	assert_null(get(pool, 1, &users[0]));
	while (more < 30 && (bufs[n] = get(pool, 1, &users[1]))) {
		more++;
		n++;
	}
	assert_int_equal(more, 30);
	/* The third: 20 for each. One that holds nothing always may, whatever it asks for. */
	assert_null(get(pool, 1, &users[2]));
	for (unsigned i = 0; i < 20; i++)
		pool_put(bufs[--n]);
	assert_null(get(pool, 1, &users[0]));
	bufs[n] = get(pool, 20, &users[2]);
	assert_non_null(bufs[n]);
	n++;
	while (n > 0)
		pool_put(bufs[--n]);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(users[i].of[pool_index(pool)].granules, 0);
	/* The others ask no more: after a while the first has all of it again. */
	for (unsigned i = 0; i < 2 * 4 * 60; i++)
		pool_put(get(pool, 1, &users[0]));
	while (n < 60 && (bufs[n] = get(pool, 1, &users[0])))
		n++;
	assert_int_equal(n, 60);
	while (n > 0)
		pool_put(bufs[--n]);
	close_pool(pool);
}

/* -- waiting */

static void first_come_first_served(void **state)
{
	struct pool *pool = open_pool("p", 8);
	struct pool_buf *half = get(pool, 4, NULL), *other = get(pool, 4, NULL);
	struct wait a, b, c;

	calls = 0;
	wait_for(pool, &a, 6, &reactors[0]);
	wait_for(pool, &b, 1, &reactors[1]);
	wait_for(pool, &c, 1, &reactors[0]);
	pool_put(half);
	run_inboxes();
	assert_int_equal(calls, 0); /* b would fit, but a is first */
	assert_null(get(pool, 1, NULL)); /* nobody overtakes those who wait */
	pool_put(other);
	assert_int_equal(calls, 0); /* only by message */
	run_inboxes();
	assert_int_equal(calls, 3);
	assert_ptr_equal(a.r, &reactors[0]);
	assert_ptr_equal(b.r, &reactors[1]);
	assert_int_equal(a.order, 1);
	assert_true(a.order < c.order);
	assert_int_equal(a.buf->granules, 6);
	pool_put(a.buf);
	pool_put(b.buf);
	pool_put(c.buf);
	/* Room at once: still by message. */
	wait_for(pool, &a, 8, &reactors[0]);
	assert_int_equal(a.calls, 0);
	run_inboxes();
	assert_non_null(a.buf);
	pool_put(a.buf);
	assert_int_equal(atomic_load(&pool->waits), 4);
	close_pool(pool);
}

static void waiting_can_be_given_up(void **state)
{
	struct pool *pool = open_pool("p", 8);
	struct pool_buf *most = get(pool, 6, NULL);
	struct wait a, b;

	wait_for(pool, &a, 8, &reactors[0]);
	wait_for(pool, &b, 2, &reactors[0]);
	run_inboxes();
	assert_int_equal(b.calls, 0);
	assert_true(pool_unwait(&a.waiter)); /* it stood in the way */
	assert_false(pool_unwait(&b.waiter)); /* too late: it is on its way */
	run_inboxes();
	assert_int_equal(a.calls, 0);
	assert_int_equal(b.calls, 1);
	assert_int_equal(pool->waiting, 0);
	pool_put(b.buf);
	pool_put(most);
	/* More than there can ever be is not waited for. */
	wait_for(pool, &a, 9, &reactors[0]);
	run_inboxes();
	assert_int_equal(a.calls, 1);
	assert_null(a.buf);
	close_pool(pool);
}

static void who_waits_beyond_its_share_lets_others_pass(void **state)
{
	static struct pool_user users[2];
	struct pool *pool = open_pool("p", 8);
	struct pool_buf *bufs[8];
	struct wait greedy[4], modest;

	memset(users, 0, sizeof(users));
	calls = 0;
	for (unsigned i = 0; i < 8; i++)
		bufs[i] = get(pool, 1, &users[0]);
	for (unsigned i = 0; i < 4; i++) {
		memset(&greedy[i], 0, sizeof(greedy[i]));
		greedy[i].waiter.want = (struct pool_want){ .bytes = G, .user = &users[0] };
		greedy[i].waiter.granted = on_granted;
		pool_wait(pool, &greedy[i].waiter, &reactors[0]);
	}
	memset(&modest, 0, sizeof(modest));
	modest.waiter.want = (struct pool_want){ .bytes = G, .user = &users[1] };
	modest.waiter.granted = on_granted;
	pool_wait(pool, &modest.waiter, &reactors[0]);
	pool_put(bufs[0]);
	run_inboxes();
	assert_int_equal(calls, 1);
	assert_int_equal(modest.calls, 1);
	for (unsigned i = 1; i < 8; i++)
		pool_put(bufs[i]);
	run_inboxes();
	assert_int_equal(calls, 5);
	for (unsigned i = 0; i < 4; i++)
		pool_put(greedy[i].buf);
	pool_put(modest.buf);
	close_pool(pool);
}

static void a_pool_that_goes_away_is_not_waited_for(void **state)
{
	struct pool *pool = open_pool("p", 4);
	struct pool_buf *all = get(pool, 4, NULL);
	struct wait a, b;
	unsigned idle = 0;

	wait_for(pool, &a, 1, &reactors[0]);
	pool_close(pool, count_call, &idle);
	assert_null(pool_find("p"));
	run_inboxes();
	assert_int_equal(a.calls, 1);
	assert_null(a.buf);
	wait_for(pool, &b, 1, &reactors[0]);
	run_inboxes();
	assert_null(b.buf);
	assert_null(get(pool, 1, NULL));
	assert_false(pool_possible(pool, 1));
	assert_int_equal(idle, 0); /* its memory is still in use */
	assert_ptr_equal(pool_of(all->iov[0].iov_base), pool);
	pool_put(all);
	assert_int_equal(idle, 1);
	pool_destroy(pool);
	/* The same name takes the same index again. */
	unsigned index = pool_index(pool);

	pool = open_pool("p", 4);
	assert_int_equal(pool_index(pool), index);
	assert_false(pool->renamed);
	close_pool(pool);
}

/* -- several threads */

#define STRESS_TURNS 20000

struct stress {
	struct pool *pool;
	struct reactor *r;
	struct pool_user user;
	uint32_t number;
	uint64_t state;
	unsigned got, refused, waited;
	bool broken;
};

static atomic_uint stress_left;

static uint32_t stress_rnd(struct stress *s, uint32_t below)
{
	s->state = s->state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((s->state >> 33) % below);
}

static void fill(struct pool_buf *buf, uint32_t number)
{
	for (uint32_t i = 0; i < buf->n; i++)
		for (size_t at = 0; at < buf->iov[i].iov_len; at += G)
			*(uint32_t *)((uint8_t *)buf->iov[i].iov_base + at) = number;
}

static bool holds(const struct pool_buf *buf, uint32_t number)
{
	for (uint32_t i = 0; i < buf->n; i++)
		for (size_t at = 0; at < buf->iov[i].iov_len; at += G)
			if (*(uint32_t *)((uint8_t *)buf->iov[i].iov_base + at) != number)
				return false;
	return true;
}

static void *stress_main(void *arg)
{
	struct stress *s = arg;
	struct pool_buf *held[6] = { 0 };

	for (unsigned turn = 0; turn < STRESS_TURNS; turn++) {
		struct pool_buf **one = &held[stress_rnd(s, 6)];
		struct wait wait = { 0 };
		struct pool_want want = { .bytes = (1 + stress_rnd(s, 9)) * G, .owner = s->number, .wipe = turn & 1,
					  .user = &s->user };

		if (*one) {
			s->broken |= !holds(*one, s->number);
			pool_put(*one);
			*one = NULL;
			continue;
		}
		*one = pool_get(s->pool, &want);
		if (!*one && stress_rnd(s, 4) == 0) {
			/* Whoever waits holds nothing else, or two could wait for each other for ever. */
			for (size_t i = 0; i < 6; i++)
				if (held[i]) {
					pool_put(held[i]);
					held[i] = NULL;
				}
			s->waited++;
			wait.waiter.want = want;
			wait.waiter.granted = on_granted;
			pool_wait(s->pool, &wait.waiter, s->r);
			while (!wait.calls && (stress_rnd(s, 50) || !pool_unwait(&wait.waiter)))
				reactor_run_inbox(s->r);
			*one = wait.buf;
		}
		s->got += *one != NULL;
		s->refused += *one == NULL;
		if (*one)
			fill(*one, s->number);
	}
	for (size_t i = 0; i < 6; i++)
		if (held[i])
			pool_put(held[i]);
	atomic_fetch_sub(&stress_left, 1);
	return NULL;
}

static void threads_share_a_pool(void **state)
{
	static struct stress stress[2];
	struct pool *pool = open_pool("p", 40);
	pthread_t threads[2];

	memset(stress, 0, sizeof(stress));
	atomic_store(&stress_left, 2);
	for (unsigned i = 0; i < 2; i++) {
		stress[i].pool = pool;
		stress[i].r = &reactors[i];
		stress[i].number = stress[i].state = i + 1;
		assert_int_equal(pthread_create(&threads[i], NULL, stress_main, &stress[i]), 0);
	}
	/* Meanwhile addresses are looked up while the table changes. */
	while (atomic_load(&stress_left)) {
		struct pool *passing = open_pool("passing", 4);

		assert_ptr_equal(pool_of(passing->base), passing);
		assert_ptr_equal(pool_of(pool->base + 40 * G), pool);
		close_pool(passing);
	}
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(threads[i], NULL);
		assert_false(stress[i].broken); /* nobody else wrote into a buffer that was ours */
		assert_true(stress[i].got > STRESS_TURNS / 10);
	}
	assert_int_equal(pool->space.free, 40);
	assert_int_equal(pool->in_use, 0);
	close_pool(pool);
}

/* -- wiping */

/* How many bytes of another owner does a reader find that looks before anything was written? */
static size_t bytes_left_by_another(bool write_between)
{
	struct pool *pool = open_pool("p", 4);
	struct pool_want first = { .bytes = 3 * G, .owner = pool_owner_get("first") };
	struct pool_want second = { .bytes = 2 * G + 512, .owner = pool_owner_get("second"), .wipe = true };
	struct pool_buf *buf = pool_get(pool, &first);
	const uint8_t *seen;
	size_t found = 0;

	assert_int_not_equal(first.owner, second.owner);
	memset(buf->iov[0].iov_base, 0xA5, buf->iov[0].iov_len);
	pool_filled(buf);
	pool_put(buf);
	if (write_between) { /* the second host's Write, of which only a part arrives: not wiped */
		second.wipe = false;
		buf = pool_get(pool, &second);
		((uint8_t *)buf->iov[0].iov_base)[0] = 1;
		pool_put(buf);
		second.wipe = true;
	}
	buf = pool_get(pool, &second);
	assert_non_null(buf);
	seen = buf->iov[0].iov_base;
	for (size_t i = 0; i < 3 * G; i++) /* to the end of the granule */
		found += seen[i] == 0xA5;
	pool_put(buf);
	pool_owner_put(first.owner);
	pool_owner_put(second.owner);
	close_pool(pool);
	return found;
}

static void nobody_sees_what_another_host_left(void **state)
{
	assert_int_equal(bytes_left_by_another(false), 0);
	assert_int_equal(bytes_left_by_another(true), 0);
}

static void without_wiping_it_would_be_seen(void **state)
{
	pool_test_no_wipe = true;
	assert_int_equal(bytes_left_by_another(false), 3 * G);
	assert_int_equal(bytes_left_by_another(true), 3 * G - 1);
}

static void only_a_change_of_owner_costs_a_wipe(void **state)
{
	struct pool *pool = open_pool("p", 2);
	struct pool_want want = { .bytes = 2 * G, .owner = 5, .wipe = true };

	pool_put(pool_get(pool, &want)); /* fresh memory is zeroes */
	pool_put(pool_get(pool, &want));
	assert_int_equal(atomic_load(&pool->wiped_bytes), 0);
	want.owner = 6;
	want.wipe = false;
	pool_put(pool_get(pool, &want)); /* a Write that was not filled: of both from now on */
	want.owner = 5;
	want.wipe = true;
	pool_put(pool_get(pool, &want));
	assert_int_equal(atomic_load(&pool->wiped_bytes), 2 * G);
	want.owner = 6;
	want.wipe = false;
	struct pool_buf *buf = pool_get(pool, &want);

	pool_filled(buf);
	pool_put(buf);
	want.wipe = true;
	pool_put(pool_get(pool, &want)); /* its own */
	assert_int_equal(atomic_load(&pool->wiped_bytes), 2 * G);
	want.owner = POOL_OWNER_NONE; /* ours: nobody's to keep */
	pool_put(pool_get(pool, &want));
	pool_put(pool_get(pool, &want));
	assert_int_equal(atomic_load(&pool->wiped_bytes), 6 * G);
	close_pool(pool);
}

static void a_waiter_gets_wiped_memory(void **state)
{
	struct pool *pool = open_pool("p", 2);
	struct pool_buf *buf = pool_get(pool, &(struct pool_want){ .bytes = 2 * G, .owner = 5 });
	struct wait wait;

	memset(buf->iov[0].iov_base, 0xA5, 2 * G);
	wait_for(pool, &wait, 2, &reactors[0]);
	pool_put(buf);
	run_inboxes();
	for (size_t i = 0; i < 2 * G; i++)
		assert_int_equal(((uint8_t *)wait.buf->iov[0].iov_base)[i], 0);
	pool_put(wait.buf);
	close_pool(pool);
}

static void a_host_keeps_its_number_while_it_is_here(void **state)
{
	uint32_t a = pool_owner_get("a"), b = pool_owner_get("b");

	assert_int_not_equal(a, b);
	assert_int_not_equal(a, POOL_OWNER_NONE);
	assert_int_equal(pool_owner_get("a"), a);
	pool_owner_put(a);
	assert_int_equal(pool_owner_get("a"), a);
	pool_owner_put(a);
	pool_owner_put(a);
	assert_int_not_equal(pool_owner_get("a"), a); /* its granules are no longer known to be its own */
	pool_owner_put(b);
	pool_owner_put(b + 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(granules_are_never_lost_or_given_twice, setup),
		cmocka_unit_test_setup(best_fit_leaves_long_runs_whole, setup),
		cmocka_unit_test_setup(a_buffer_may_lie_in_32_pieces_and_not_in_33, setup),
		cmocka_unit_test_setup(a_pool_is_shared_between_queues, setup),
		cmocka_unit_test_setup(first_come_first_served, setup),
		cmocka_unit_test_setup(waiting_can_be_given_up, setup),
		cmocka_unit_test_setup(who_waits_beyond_its_share_lets_others_pass, setup),
		cmocka_unit_test_setup(a_pool_that_goes_away_is_not_waited_for, setup),
		cmocka_unit_test_setup(threads_share_a_pool, setup),
		cmocka_unit_test_setup(nobody_sees_what_another_host_left, setup),
		cmocka_unit_test_setup(without_wiping_it_would_be_seen, setup),
		cmocka_unit_test_setup(only_a_change_of_owner_costs_a_wipe, setup),
		cmocka_unit_test_setup(a_waiter_gets_wiped_memory, setup),
		cmocka_unit_test_setup(a_host_keeps_its_number_while_it_is_here, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
