/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Memory of a drive on vfio-pci: the registers by which it is found and enabled, the ways to the device, the pool in it.
 */
#include "pool_rig.h"

#include <sys/eventfd.h>

#include "fake_drive.h"
#include "nvme_cmb.h"
#include "pool_device.h"
#include "vfio.h"

#define MIB (1ull << 20)

static const struct nvme_regs regs = { fake_read, fake_write, NULL };
static char err[DP_ERR_MAX];

static int begin(void **state)
{
	fake_reset();
	err[0] = 0;
	return setup(state);
}

/* -- registers */

static void a_cmb_shows_itself_when_asked(void **state)
{
	struct nvme_memory m;

	assert_int_equal(nvme_cmb_find(&regs, &m, err), 0);
	assert_int_equal(m.kind, NVME_CMB);
	assert_int_equal(m.bar, 2);
	assert_int_equal(m.offset, MIB);
	assert_int_equal(m.bytes, 4 * MIB);
	assert_true(m.reads && m.writes && m.movable);
	assert_int_equal(fake.cmbmsc[0], 1);
	assert_int_equal(nvme_memory_enable(&regs, &m, 0x7F1234567000, err), 0);
	assert_int_equal(fake.cmbmsc[1], 0x7F12);
	assert_int_equal(fake.cmbmsc[0], 0x34567003);
	nvme_memory_disable(&regs, &m);
	assert_int_equal(fake.cmbmsc[0] | fake.cmbmsc[1], 0);
	assert_int_equal(nvme_memory_enable(&regs, &m, 0x7F1234567001, err), -EINVAL);
}

static void sizes_and_places_have_a_unit(void **state)
{
	struct nvme_memory m;

	fake.cmbsz = 3u << 8 | 1u << 3 | 5u << 12; /* of 16 MiB */
	fake.cmbloc = 4 | 2u << 12;
	assert_int_equal(nvme_cmb_find(&regs, &m, err), 0);
	assert_int_equal(m.bar, 4);
	assert_int_equal(m.offset, 32 * MIB);
	assert_int_equal(m.bytes, 80 * MIB);
	assert_true(m.reads && !m.writes);
	fake.cmbsz = 6u << 8 | 1u << 12;
	assert_int_equal(nvme_cmb_find(&regs, &m, err), 0);
	assert_int_equal(m.bytes, 64ull << 30);
	fake.cmbmsc[0] = 0;
	fake.cmbsz = 7u << 8 | 1u << 12;
	assert_int_equal(nvme_cmb_find(&regs, &m, err), -EPROTO);
	assert_int_equal(fake.cmbmsc[0], 0); /* as before */
	fake.cmbsz = 1u << 3 | 1u << 4 | 1u << 12;
	fake.cmbloc = 6; /* there are BARs 0 to 5 */
	assert_int_equal(nvme_cmb_find(&regs, &m, err), -EPROTO);
	fake.cap[1] |= 1u << 24;
	fake.pmrcap = 7u << 5 | 1u << 3 | 1u << 4;
	assert_int_equal(nvme_pmr_find(&regs, &m, err), -EPROTO);
}

static void a_legacy_cmb_is_used_as_it_is(void **state)
{
	struct nvme_memory m;

	fake.cap[1] = 0x20;
	assert_int_equal(nvme_cmb_find(&regs, &m, err), 0);
	assert_int_equal(m.kind, NVME_CMB_LEGACY);
	assert_false(m.movable);
	assert_int_equal(nvme_memory_enable(&regs, &m, 0x1000, err), 0);
	nvme_memory_disable(&regs, &m);
	assert_int_equal(fake.cmbmsc[0] | fake.cmbmsc[1], 0);
	fake.cmbsz = 0;
	assert_int_equal(nvme_cmb_find(&regs, &m, err), -ENOENT);
	assert_non_null(strstr(err, "no Controller Memory Buffer"));
}

static void an_address_that_the_controller_refuses(void **state)
{
	struct nvme_memory m;

	fake.address_max = (1ull << 39) - 1;
	assert_int_equal(nvme_cmb_find(&regs, &m, err), 0);
	assert_int_equal(nvme_memory_enable(&regs, &m, 1ull << 39, err), -EADDRNOTAVAIL);
	assert_non_null(strstr(err, "CBAI"));
	assert_int_equal(nvme_memory_enable(&regs, &m, 1ull << 38, err), 0);
}

static void a_drive_that_is_gone(void **state)
{
	struct nvme_memory m;

	fake.gone = true;
	assert_int_equal(nvme_cmb_find(&regs, &m, err), -ENODEV);
	assert_int_equal(nvme_pmr_find(&regs, &m, err), -ENODEV);
	fake.gone = false;
	assert_int_equal(nvme_cmb_find(&regs, &m, err), 0);
	fake.gone = true;
	assert_int_equal(nvme_memory_enable(&regs, &m, 0x1000, err), -ENODEV);
}

static void a_pmr_is_awaited(void **state)
{
	struct nvme_memory m;

	assert_int_equal(nvme_pmr_find(&regs, &m, err), -ENOENT);
	fake.cap[1] |= 1u << 24;
	fake.pmrcap = 4u << 5 | 1u << 3 | 1u << 4 | 1u << 16 | 1u << 24; /* half a second */
	fake.slow_reads = 3;
	assert_int_equal(nvme_pmr_find(&regs, &m, err), 0);
	assert_int_equal(m.bar, 4);
	assert_true(m.reads && m.writes && m.movable);
	assert_int_equal(nvme_memory_enable(&regs, &m, 0x7F1234567000, err), 0);
	assert_int_equal(fake.pmrctl, 1);
	assert_int_equal(fake.pmrmsc[1], 0x7F12);
	assert_int_equal(fake.pmrmsc[0], 0x34567002);
	nvme_memory_disable(&regs, &m);
	assert_int_equal(fake.pmrctl | fake.pmrmsc[0] | fake.pmrmsc[1], 0);
	fake.pmrcap &= ~(0xFFu << 16); /* no time at all */
	fake.slow_reads = 3;
	assert_int_equal(nvme_memory_enable(&regs, &m, 0x1000, err), -ETIMEDOUT);
	fake.slow_reads = 0;
	fake.address_max = 0xFFFF;
	assert_int_equal(nvme_memory_enable(&regs, &m, 0x10000, err), -EADDRNOTAVAIL);
}

/* -- the ways to the device */

static void through_its_group(void **state)
{
	struct vfio_dev dev;
	uint64_t bytes;

	assert_int_equal(vfio_open(&dev, FAKE_BDF, err), 0);
	assert_int_equal(fake.open, 3);
	assert_true(fake.with_iommu && !fake.bound);
	assert_int_equal(fake.command, 2); /* it answers, and asks nobody */
	assert_int_equal(vfio_bar_bytes(&dev, 2, &bytes), 0);
	assert_int_equal(bytes, 8 * MIB);
	vfio_close(&dev);
	assert_int_equal(fake.open, 0);
}

static void through_a_node_of_its_own(void **state)
{
	struct vfio_dev dev;

	fake.cdev = true;
	assert_int_equal(vfio_open(&dev, FAKE_BDF, err), 0);
	assert_true(fake.bound && !fake.with_iommu);
	assert_int_equal(fake.open, 2);
	vfio_close(&dev);
	assert_int_equal(fake.open, 0);
	fake.group_rc = -EBUSY;
	assert_int_equal(vfio_open(&dev, FAKE_BDF, err), -EBUSY);
	assert_non_null(strstr(err, "somebody else has it"));
	assert_int_equal(fake.open, 0);
}

static void assert_refused(int rc, const char *why)
{
	struct vfio_dev dev;

	assert_int_equal(vfio_open(&dev, FAKE_BDF, err), rc);
	assert_non_null(strstr(err, why));
	assert_int_equal(fake.open, 0);
}

static void a_refusal_has_its_reason(void **state)
{
	struct vfio_dev dev;

	fake.driver = "nvme";
	assert_refused(-EPERM, "driver nvme has it, not vfio-pci: nvmet-p2p setup bind " FAKE_BDF);
	fake.driver = NULL;
	assert_refused(-EPERM, "no driver has it");
	fake.driver = "vfio-pci";
	fake.grouped = false;
	assert_refused(-ENOTSUP, "no IOMMU group");
	fake.grouped = true;
	fake.not_viable = true;
	assert_refused(-EPERM, "devices that other drivers have");
	fake.group_rc = -EBUSY;
	assert_refused(-EBUSY, "somebody else has this device, or another one of its IOMMU group");
	fake.group_rc = -EACCES;
	assert_refused(-EACCES, "Permission denied");
	assert_int_equal(vfio_open(&dev, "0000:04:00.0", err), -ENODEV);
	assert_int_equal(vfio_open(&dev, "../../x", err), -EINVAL);
}

static void a_bar_is_mapped_where_huge_pages_can_be(void **state)
{
	struct vfio_area area;
	struct vfio_dev dev;

	fake.sparse = true;
	assert_int_equal(vfio_open(&dev, FAKE_BDF, err), 0);
	assert_int_equal(vfio_bar_map(&dev, 2, MIB, 4 * MIB, &area, err), 0);
	assert_int_equal((uintptr_t)area.base % (2 * MIB), 0);
	assert_false(area.write_combining);
	memset(area.base, 0x5A, 4 * MIB);
	vfio_area_unmap(&area);
	assert_int_equal(vfio_bar_map(&dev, 2, 0, 4 * MIB, &area, err), -ENOTSUP); /* its MSI-X table is there */
	assert_int_equal(vfio_bar_map(&dev, 2, 6 * MIB, 4 * MIB, &area, err), -ENOTSUP);
	fake.combining = true;
	assert_int_equal(vfio_bar_map(&dev, 2, MIB, 4 * MIB, &area, err), 0);
	assert_true(area.write_combining);
	assert_int_equal(((uint8_t *)area.base)[4 * MIB - 1], 0x5A);
	vfio_area_unmap(&area);
	vfio_close(&dev);
	assert_int_equal(fake.open, 0);
}

/* -- the pool */

static struct pool *open_device(uint64_t bytes, int want)
{
	struct dp_pool_config config = { .name = FAKE_BDF, .kind = DP_POOL_SPDK_CMB, .bytes = bytes };
	int rc;
	struct pool *pool = pool_open(&config, false, &rc, err);

	assert_int_equal(rc, want);
	assert_int_equal(pool != NULL, want == 0);
	return pool;
}

static void a_pool_in_a_cmb(void **state)
{
	struct dp_pool_device facts;
	struct pool *pool;
	uint8_t *base;

	fake.dmabuf = true;
	pool = open_device(0, 0);
	base = pool->base;
	assert_int_equal(pool->bytes, 4 * MIB);
	assert_ptr_equal(fake.shared, base);
	assert_int_equal(fake.shared_bytes, 4 * MIB);
	/* commands name it by the address at which drives were told of it */
	assert_int_equal(fake.cmbmsc[0], (uint32_t)(uintptr_t)base | 3);
	assert_int_equal(fake.cmbmsc[1], (uintptr_t)base >> 32);
	pool_device_facts(pool->device, &facts);
	assert_string_equal(facts.region, "cmb");
	assert_string_equal(facts.via, "vfio");
	assert_true(facts.spdk && facts.dma_buf && !facts.write_combining);
	assert_true(pool_device_dmabuf(pool->device) >= 0);
	/* what another owner left is wiped, as in any pool */
	fake_bar_fill(4, 0xEE);
	pool_put(pool_get(pool, &(struct pool_want){ .bytes = 15 * G, .owner = 1, .wipe = true }));
	assert_int_equal(atomic_load(&pool->wiped_bytes), 15 * G);
	close_pool(pool);
	assert_int_equal(fake.open, 0);
	assert_null(fake.shared);
	assert_int_equal(fake.cmbmsc[0] | fake.cmbmsc[1], 0);
	pool = open_device(MIB, 0);
	assert_int_equal(pool->bytes, MIB);
	assert_int_equal(fake.shared_bytes, 4 * MIB);
	close_pool(pool);
	open_device(5 * MIB, -ENOMEM);
	assert_int_equal(fake.open, 0);
}

static void a_small_cmb_is_nothing_for_spdk(void **state)
{
	struct dp_pool_device facts;
	struct pool *pool;

	fake.cmbsz = 1u << 3 | 1u << 4 | 16u << 12;
	pool = open_device(0, 0);
	assert_int_equal(pool->bytes, 64 << 10);
	pool_device_facts(pool->device, &facts);
	assert_false(facts.spdk || facts.dma_buf);
	assert_non_null(strstr(facts.no_dma_buf, "6.19"));
	close_pool(pool);
}

static void without_data_there_is_no_pool(void **state)
{
	struct dp_pool_device facts;

	fake.cmbsz &= ~(1u << 3);
	open_device(0, -ENOENT);
	assert_non_null(strstr(err, "its CMB does not take data: RDS is 0; it has no Persistent Memory Region"));
	assert_int_equal(fake.cmbmsc[0], 0);
	assert_int_equal(pool_device_probe(FAKE_BDF, false, &facts, err), -ENOENT);
	/* a PMR that does serves as well */
	fake.cap[1] |= 1u << 24;
	fake.pmrcap = 4u << 5 | 1u << 3 | 1u << 4 | 1u << 16 | 1u << 24;
	struct pool *pool = open_device(0, 0);

	assert_int_equal(pool->bytes, 16 * MIB);
	pool_device_facts(pool->device, &facts);
	assert_string_equal(facts.region, "pmr");
	close_pool(pool);
	assert_int_equal(fake.pmrctl, 0);
	fake.pmrcap &= ~(1u << 4);
	open_device(0, -ENOTSUP);
	assert_non_null(strstr(err, "its PMR does not take data: WDS is 0"));
	assert_int_equal(fake.open, 0);
}

static void a_probe_leaves_nothing_behind(void **state)
{
	struct dp_pool_device facts;

	fake.dmabuf = true;
	assert_int_equal(pool_device_probe(FAKE_BDF, false, &facts, err), 0);
	assert_string_equal(facts.region, "cmb");
	assert_int_equal(facts.bytes, 4 * MIB);
	assert_int_equal(facts.bar, 2);
	assert_true(facts.dma_buf);
	assert_int_equal(fake.open, 0);
	assert_int_equal(fake.cmbmsc[0], 0);
	assert_null(fake.shared);
	fake.opened = 0;
	assert_int_equal(pool_device_probe(FAKE_BDF, true, &facts, err), -ENOTCONN);
	assert_int_equal(fake.opened, 0); /* it is SPDK's to open */
	fake.cmbloc = 2 | 4096u << 12; /* behind the end of its BAR */
	assert_int_equal(pool_device_probe(FAKE_BDF, false, &facts, err), -EPROTO);
}

static void lost(struct pool *pool, const char *why)
{
	while (!pool_is_lost(pool))
		sched_yield();
	assert_non_null(strstr(atomic_load(&pool->why), why));
	assert_null(get(pool, 1, NULL));
}

static void the_kernel_wants_it_back(void **state)
{
	struct pool *pool = open_device(0, 0);
	struct pool_buf *buf = get(pool, 1, NULL);

	assert_true(fake.request >= 0);
	eventfd_write(fake.request, 1);
	lost(pool, "to be removed");
	((uint8_t *)buf->iov[0].iov_base)[0] = 1; /* what is in progress goes on, in memory of our own */
	pool_put(buf);
	assert_true(fake.open > 0);
	close_pool(pool);
	assert_int_equal(fake.open, 0); /* now the kernel has it */
	pool = open_device(0, 0);       /* and it is back */
	assert_true(pool_check(pool));
	close_pool(pool);
}

static void pulled_out(void **state)
{
	struct pool *pool = open_device(0, 0);
	struct pool_buf *buf = get(pool, 1, NULL);

	fake_bar_truncate(2, 0);
	fake.gone = true;
	assert_int_equal(*(volatile uint8_t *)buf->iov[0].iov_base, 0); /* SIGBUS */
	lost(pool, "SIGBUS");
	pool_put(buf);
	close_pool(pool);
	assert_int_equal(fake.open, 0);
}

static void reads_as_all_ones(void **state)
{
	struct pool *pool = open_device(0, 0);

	fake_bar_fill(2, 0xFF);
	assert_false(pool_check(pool));
	lost(pool, "all ones");
	close_pool(pool);
}

/* -- in SPDK's hands */

static void of_an_attached_controller(void **state)
{
	struct dp_pool_device facts;
	struct pool *pool;

	fake.held = true;
	fake.driver = "nvme"; /* nobody looks */
	fake.cap[1] = 0x20;   /* plain memory is its registers: as a legacy CMB's are */
	pool = open_device(0, 0);
	/* 4 MiB that begin 2 MiB past a huge page's begin, so all of it lies in huge pages */
	assert_int_equal(pool->bytes, 4 * MIB);
	assert_ptr_equal(pool->base, (uint8_t *)fake.bar + MIB);
	assert_ptr_equal(fake.shared, pool->base);
	assert_int_equal(fake.opened, 0);
	pool_device_facts(pool->device, &facts);
	assert_string_equal(facts.via, "spdk");
	assert_string_equal(facts.region, "legacy cmb");
	assert_true(facts.spdk);
	assert_string_equal(facts.no_dma_buf, "SPDK has the device, and not by VFIO");
	fake.gone_fn(fake.gone_arg, "its controller was reset");
	lost(pool, "was reset");
	close_pool(pool);
	assert_int_equal(fake.holds, 0);
	assert_null(fake.bar);
	/* one huge page of addresses is the least */
	fake.cmbloc = 2 | 128u << 12;
	fake.cmbsz = 1u << 3 | 1u << 4 | 512u << 12;
	open_device(0, -ENOTSUP);
	assert_int_equal(fake.holds, 0);
	assert_null(fake.bar);
}

/* Its descriptor is found among those of this process. */
static void a_dmabuf_of_what_spdk_has(void **state)
{
	struct dp_pool_device facts;
	struct pool *pool;

	fake.held = fake.dmabuf = true;
	fake.cap[1] = 0x20;
	fake.bus = 0x38F0000000;
	pool = open_device(0, 0);
	pool_device_facts(pool->device, &facts);
	assert_true(facts.dma_buf);
	close_pool(pool);
	assert_int_equal(fake.open, 0);
	assert_int_equal(pool_device_probe(FAKE_BDF, true, &facts, err), 0);
	assert_true(facts.dma_buf);
	fake.bus += 4096; /* another device's */
	assert_int_equal(pool_device_probe(FAKE_BDF, false, &facts, err), 0);
	assert_false(facts.dma_buf);
	fake.dmabuf = false;
	fake.bus -= 4096;
	assert_int_equal(pool_device_probe(FAKE_BDF, false, &facts, err), 0);
	assert_non_null(strstr(facts.no_dma_buf, "6.19"));
	assert_int_equal(fake.open, 0);
}

static void spdk_does_not_take_it(void **state)
{
	struct dp_pool_device facts;
	struct pool *pool;

	fake.share_rc = -EFAULT;
	pool = open_device(0, 0);
	pool_device_facts(pool->device, &facts);
	assert_false(facts.spdk);
	close_pool(pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_cmb_shows_itself_when_asked, begin),
		cmocka_unit_test_setup(sizes_and_places_have_a_unit, begin),
		cmocka_unit_test_setup(a_legacy_cmb_is_used_as_it_is, begin),
		cmocka_unit_test_setup(an_address_that_the_controller_refuses, begin),
		cmocka_unit_test_setup(a_drive_that_is_gone, begin),
		cmocka_unit_test_setup(a_pmr_is_awaited, begin),
		cmocka_unit_test_setup(through_its_group, begin),
		cmocka_unit_test_setup(through_a_node_of_its_own, begin),
		cmocka_unit_test_setup(a_refusal_has_its_reason, begin),
		cmocka_unit_test_setup(a_bar_is_mapped_where_huge_pages_can_be, begin),
		cmocka_unit_test_setup(a_pool_in_a_cmb, begin),
		cmocka_unit_test_setup(a_small_cmb_is_nothing_for_spdk, begin),
		cmocka_unit_test_setup(without_data_there_is_no_pool, begin),
		cmocka_unit_test_setup(a_probe_leaves_nothing_behind, begin),
		cmocka_unit_test_setup(the_kernel_wants_it_back, begin),
		cmocka_unit_test_setup(pulled_out, begin),
		cmocka_unit_test_setup(reads_as_all_ones, begin),
		cmocka_unit_test_setup(of_an_attached_controller, begin),
		cmocka_unit_test_setup(a_dmabuf_of_what_spdk_has, begin),
		cmocka_unit_test_setup(spdk_does_not_take_it, begin),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
