/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What this project uses of SPDK's header of that name; see env.h. Constants are those of the NVMe specifications.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPDK_NVMF_NQN_MAX_LEN 223
#define SPDK_NVMF_TRADDR_MAX_LEN 256
#define SPDK_NVMF_TRSVCID_MAX_LEN 32
#define SPDK_NVME_GLOBAL_NS_TAG 0xFFFFFFFFu
#define SPDK_NVME_LOG_HEALTH_INFORMATION 0x02
#define SPDK_NVME_DSM_ATTR_DEALLOCATE 4
#define SPDK_NVME_ASYNC_EVENT_TYPE_NOTICE 2
#define SPDK_NVME_ASYNC_EVENT_NS_ATTR_CHANGED 0
#define SPDK_NVME_CSI_NVM 0

enum { SPDK_NVME_SCT_GENERIC = 0, SPDK_NVME_SCT_MEDIA_ERROR = 2, SPDK_NVME_SCT_PATH = 3 };
enum {
	SPDK_NVME_SC_ABORTED_POWER_LOSS = 0x05,
	SPDK_NVME_SC_ABORTED_BY_REQUEST = 0x07,
	SPDK_NVME_SC_ABORTED_SQ_DELETION = 0x08,
	SPDK_NVME_SC_COMMAND_TRANSIENT_TRANSPORT_ERROR = 0x22,
};
enum spdk_nvme_transport_type { SPDK_NVME_TRANSPORT_PCIE = 256, SPDK_NVME_TRANSPORT_TCP = 3 };
enum spdk_nvmf_adrfam { SPDK_NVMF_ADRFAM_IPV4 = 1, SPDK_NVMF_ADRFAM_IPV6 = 2 };

struct spdk_nvme_ctrlr;
struct spdk_nvme_qpair;
struct spdk_nvme_ns;
struct spdk_nvme_probe_ctx;
struct spdk_nvme_detach_ctx;
struct spdk_nvme_ctrlr_data;
struct spdk_nvme_ns_data;
struct spdk_nvme_registers;
struct spdk_uuid;

struct spdk_nvme_transport_id {
	enum spdk_nvme_transport_type trtype;
	enum spdk_nvmf_adrfam adrfam;
	char traddr[SPDK_NVMF_TRADDR_MAX_LEN + 1], trsvcid[SPDK_NVMF_TRSVCID_MAX_LEN + 1], subnqn[SPDK_NVMF_NQN_MAX_LEN + 1];
};
struct spdk_nvme_ctrlr_opts {
	uint32_t num_io_queues, keep_alive_timeout_ms;
	bool header_digest, data_digest, disable_error_logging;
	char hostnqn[SPDK_NVMF_NQN_MAX_LEN + 1], src_addr[SPDK_NVMF_TRADDR_MAX_LEN + 1], src_svcid[SPDK_NVMF_TRSVCID_MAX_LEN + 1];
};
struct spdk_nvme_io_qpair_opts {
	uint32_t io_queue_size, io_queue_requests;
	bool delay_cmd_submit;
};
struct spdk_nvme_cpl {
	uint32_t cdw0;
	struct {
		uint16_t sc : 8, sct : 3, dnr : 1;
	} status;
};
struct spdk_nvme_cmd {
	uint8_t opc;
	uint32_t nsid, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
};
struct spdk_nvme_dsm_range {
	uint32_t attributes, length;
	uint64_t starting_lba;
};
union spdk_nvme_csts_register {
	struct {
		uint32_t rdy : 1, cfs : 1;
	} bits;
};

typedef void (*spdk_nvme_cmd_cb)(void *arg, const struct spdk_nvme_cpl *cpl);
typedef void (*spdk_nvme_aer_cb)(void *arg, const struct spdk_nvme_cpl *cpl);
typedef void (*spdk_nvme_timeout_cb)(void *arg, struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_qpair *q, uint16_t cid);
typedef void (*spdk_nvme_attach_cb)(void *arg, const struct spdk_nvme_transport_id *trid, struct spdk_nvme_ctrlr *ctrlr,
				    const struct spdk_nvme_ctrlr_opts *opts);
typedef void (*spdk_nvme_req_reset_sgl_cb)(void *arg, uint32_t offset);
typedef int (*spdk_nvme_req_next_sge_cb)(void *arg, void **address, uint32_t *length);

void spdk_nvme_trid_populate_transport(struct spdk_nvme_transport_id *trid, enum spdk_nvme_transport_type type);
int spdk_nvme_transport_id_parse_adrfam(enum spdk_nvmf_adrfam *adrfam, const char *text);
int spdk_nvme_transport_id_compare(const struct spdk_nvme_transport_id *a, const struct spdk_nvme_transport_id *b);
void spdk_nvme_ctrlr_get_default_ctrlr_opts(struct spdk_nvme_ctrlr_opts *opts, size_t size);
struct spdk_nvme_probe_ctx *spdk_nvme_connect_async(const struct spdk_nvme_transport_id *trid,
						    const struct spdk_nvme_ctrlr_opts *opts, spdk_nvme_attach_cb cb);
int spdk_nvme_probe_poll_async(struct spdk_nvme_probe_ctx *ctx);
int spdk_nvme_detach_async(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_detach_ctx **ctx);
int spdk_nvme_detach_poll_async(struct spdk_nvme_detach_ctx *ctx);

const struct spdk_nvme_ctrlr_opts *spdk_nvme_ctrlr_get_opts(struct spdk_nvme_ctrlr *ctrlr);
const struct spdk_nvme_ctrlr_data *spdk_nvme_ctrlr_get_data(struct spdk_nvme_ctrlr *ctrlr);
uint32_t spdk_nvme_ctrlr_get_max_xfer_size(const struct spdk_nvme_ctrlr *ctrlr);
struct spdk_pci_device *spdk_nvme_ctrlr_get_pci_device(struct spdk_nvme_ctrlr *ctrlr);
volatile struct spdk_nvme_registers *spdk_nvme_ctrlr_get_registers(struct spdk_nvme_ctrlr *ctrlr);
union spdk_nvme_csts_register spdk_nvme_ctrlr_get_regs_csts(struct spdk_nvme_ctrlr *ctrlr);
void spdk_nvme_ctrlr_register_aer_callback(struct spdk_nvme_ctrlr *ctrlr, spdk_nvme_aer_cb cb, void *arg);
void spdk_nvme_ctrlr_register_timeout_callback(struct spdk_nvme_ctrlr *ctrlr, uint64_t io_us, uint64_t admin_us,
					       spdk_nvme_timeout_cb cb, void *arg);
int spdk_nvme_ctrlr_process_admin_completions(struct spdk_nvme_ctrlr *ctrlr);
int spdk_nvme_ctrlr_disconnect(struct spdk_nvme_ctrlr *ctrlr);
void spdk_nvme_ctrlr_reconnect_async(struct spdk_nvme_ctrlr *ctrlr);
int spdk_nvme_ctrlr_reconnect_poll_async(struct spdk_nvme_ctrlr *ctrlr);
void spdk_nvme_ctrlr_fail(struct spdk_nvme_ctrlr *ctrlr);
int spdk_nvme_ctrlr_cmd_abort(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_qpair *q, uint16_t cid, spdk_nvme_cmd_cb cb,
			      void *arg);
int spdk_nvme_ctrlr_cmd_admin_raw(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_cmd *cmd, void *buf, uint32_t len,
				  spdk_nvme_cmd_cb cb, void *arg);
int spdk_nvme_ctrlr_cmd_io_raw(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_qpair *q, struct spdk_nvme_cmd *cmd, void *buf,
			       uint32_t len, spdk_nvme_cmd_cb cb, void *arg);
int spdk_nvme_ctrlr_cmd_get_log_page(struct spdk_nvme_ctrlr *ctrlr, uint8_t page, uint32_t nsid, void *buf, uint32_t len,
				     uint64_t offset, spdk_nvme_cmd_cb cb, void *arg);

void spdk_nvme_ctrlr_get_default_io_qpair_opts(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_io_qpair_opts *opts, size_t size);
struct spdk_nvme_qpair *spdk_nvme_ctrlr_alloc_io_qpair(struct spdk_nvme_ctrlr *ctrlr, const struct spdk_nvme_io_qpair_opts *opts,
						       size_t size);
int spdk_nvme_ctrlr_free_io_qpair(struct spdk_nvme_qpair *q);
int32_t spdk_nvme_qpair_process_completions(struct spdk_nvme_qpair *q, uint32_t max);

uint32_t spdk_nvme_ctrlr_get_first_active_ns(struct spdk_nvme_ctrlr *ctrlr);
uint32_t spdk_nvme_ctrlr_get_next_active_ns(struct spdk_nvme_ctrlr *ctrlr, uint32_t nsid);
bool spdk_nvme_ctrlr_is_active_ns(struct spdk_nvme_ctrlr *ctrlr, uint32_t nsid);
struct spdk_nvme_ns *spdk_nvme_ctrlr_get_ns(struct spdk_nvme_ctrlr *ctrlr, uint32_t nsid);
const struct spdk_nvme_ns_data *spdk_nvme_ns_get_data(struct spdk_nvme_ns *ns);
uint64_t spdk_nvme_ns_get_num_sectors(struct spdk_nvme_ns *ns);
uint32_t spdk_nvme_ns_get_sector_size(struct spdk_nvme_ns *ns);
uint32_t spdk_nvme_ns_get_md_size(struct spdk_nvme_ns *ns);
const struct spdk_uuid *spdk_nvme_ns_get_uuid(const struct spdk_nvme_ns *ns);
const uint8_t *spdk_nvme_ns_get_nguid(const struct spdk_nvme_ns *ns);
int spdk_nvme_ns_get_pi_type(struct spdk_nvme_ns *ns);
int spdk_nvme_ns_get_csi(const struct spdk_nvme_ns *ns);

int spdk_nvme_ns_cmd_read(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, void *data, uint64_t lba, uint32_t blocks,
			  spdk_nvme_cmd_cb cb, void *arg, uint32_t flags);
int spdk_nvme_ns_cmd_write(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, void *data, uint64_t lba, uint32_t blocks,
			   spdk_nvme_cmd_cb cb, void *arg, uint32_t flags);
int spdk_nvme_ns_cmd_readv(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, uint64_t lba, uint32_t blocks, spdk_nvme_cmd_cb cb,
			   void *arg, uint32_t flags, spdk_nvme_req_reset_sgl_cb reset, spdk_nvme_req_next_sge_cb next);
int spdk_nvme_ns_cmd_writev(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, uint64_t lba, uint32_t blocks,
			    spdk_nvme_cmd_cb cb, void *arg, uint32_t flags, spdk_nvme_req_reset_sgl_cb reset,
			    spdk_nvme_req_next_sge_cb next);
int spdk_nvme_ns_cmd_write_zeroes(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, uint64_t lba, uint32_t blocks,
				  spdk_nvme_cmd_cb cb, void *arg, uint32_t flags);
int spdk_nvme_ns_cmd_flush(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, spdk_nvme_cmd_cb cb, void *arg);
int spdk_nvme_ns_cmd_dataset_management(struct spdk_nvme_ns *ns, struct spdk_nvme_qpair *q, uint32_t type,
					const struct spdk_nvme_dsm_range *ranges, uint16_t n, spdk_nvme_cmd_cb cb, void *arg);
