/* SPDX-License-Identifier: BSD-3-Clause */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hist.h"
#include "pattern.h"

static struct hist hist, other;

static void assert_near(double value, double expected)
{
	if (fabs(value - expected) > expected * 0.008)
		fail_msg("%f is not near %f", value, expected);
}

static void empty(void **state)
{
	hist_init(&hist);
	assert_true(hist_percentile(&hist, 50) == 0);
	assert_true(hist_mean(&hist) == 0);
}

static void one_value_is_every_percentile(void **state)
{
	hist_init(&hist);
	hist_add(&hist, 123456789);
	for (double p = 0; p <= 100; p += 12.5)
		assert_true(hist_percentile(&hist, p) == 123456789);
}

static void buckets_join_without_gap(void **state)
{
	for (unsigned i = 0; i < HIST_BUCKETS; i++) {
		uint64_t low = hist_low(i), next = hist_low(i + 1);
		assert_true(next > low);
		assert_int_equal(hist_index(low), i);
		assert_int_equal(hist_index(next - 1), i);
		assert_true(next - low <= low / HIST_SUB + 1);
	}
	assert_true(hist_low(HIST_BUCKETS) == HIST_VALUE_MAX + 1);
	assert_int_equal(hist_index(UINT64_MAX), HIST_BUCKETS - 1);
}

static void small_values_are_exact(void **state)
{
	hist_init(&hist);
	for (unsigned i = 1; i <= 100; i++)
		hist_add(&hist, i);
	assert_true(hist_percentile(&hist, 0) == 1);
	assert_true(hist_percentile(&hist, 50) == 50);
	assert_true(hist_percentile(&hist, 99) == 99);
	assert_true(hist_percentile(&hist, 99.5) == 100);
	assert_true(hist_percentile(&hist, 100) == 100);
	assert_true(hist_mean(&hist) == 50.5);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

/* Against the percentiles of the sorted values themselves, over nine powers of ten. */
static void percentiles_of_many(void **state)
{
	enum { COUNT = 50000 };
	static const double PERCENTS[] = {1, 50, 90, 99, 99.9, 99.99};
	uint64_t *values = malloc(COUNT * sizeof(*values)), random = 1;
	hist_init(&hist);
	hist_init(&other);
	for (unsigned i = 0; i < COUNT; i++) {
		random = mix64(random + i);
		values[i] = (uint64_t)pow(10, 1 + (double)(random >> 11) / (double)(1ull << 53) * 9);
		hist_add(i % 2 ? &hist : &other, values[i]);
	}
	hist_merge(&hist, &other);
	qsort(values, COUNT, sizeof(*values), compare);
	for (unsigned i = 0; i < sizeof(PERCENTS) / sizeof(PERCENTS[0]); i++)
		assert_near(hist_percentile(&hist, PERCENTS[i]),
			    (double)values[(unsigned)ceil(PERCENTS[i] / 100 * COUNT) - 1]);
	assert_int_equal(hist.count, COUNT);
	assert_int_equal(hist.min, values[0]);
	assert_int_equal(hist.max, values[COUNT - 1]);
	free(values);
}

static void pattern_is_found_again(void **state)
{
	uint8_t data[4096];
	struct pattern_error error;
	pattern_fill(data, sizeof(data), 512, 100, 7, 3);
	assert_true(pattern_check(data, sizeof(data), 512, 100, 7, 3, &error));
	assert_false(pattern_check(data, sizeof(data), 512, 100, 7, 4, &error));
	assert_false(pattern_check(data, sizeof(data), 512, 101, 7, 3, &error));
	assert_int_equal(error.lba, 101);
	assert_int_equal(error.found_lba, 100);
	assert_false(pattern_check(data, sizeof(data), 512, 100, 8, 3, &error));
	assert_int_equal(error.found_generation, 7);
}

static void every_flipped_bit_is_found(void **state)
{
	uint8_t data[1024];
	struct pattern_error error;
	pattern_fill(data, sizeof(data), 512, 8, 1, 1);
	for (unsigned bit = 0; bit < sizeof(data) * 8; bit++) {
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_false(pattern_check(data, sizeof(data), 512, 8, 1, 1, &error));
		assert_int_equal(error.lba, 8 + bit / 8 / 512);
		assert_int_equal(error.offset, bit / 8 % 512);
		assert_int_equal(error.differing, 1);
		assert_int_equal(error.found ^ error.expected, 1u << bit % 8);
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(empty),
		cmocka_unit_test(one_value_is_every_percentile),
		cmocka_unit_test(buckets_join_without_gap),
		cmocka_unit_test(small_values_are_exact),
		cmocka_unit_test(percentiles_of_many),
		cmocka_unit_test(pattern_is_found_again),
		cmocka_unit_test(every_flipped_bit_is_found),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
