"""Every bound of the target in one place: the unit is in the name, the reason beside it."""

from __future__ import annotations

from typing import Final

# NVMe over Fabrics
NQN_LEN_MAX: Final = 223  # bytes, NVMe base 4.7
CNTLID_MIN: Final = 0x0001
CNTLID_MAX: Final = 0xFFEF  # FFF0h and above are reserved (NVMe base, Connect)
CNTLID_DYNAMIC: Final = 0xFFFF
CNTLID_STATIC_ANY: Final = 0xFFFE
ADMIN_ICD_BYTES: Final = 8192  # NVMe/TCP: admin and Fabrics capsules always may carry 8 KiB
AQ_DEPTH_MIN: Final = 32
AQ_DEPTH_MAX: Final = 128
IO_QUEUE_DEPTH_MAX: Final = 1024  # CAP.MQES + 1
IO_QUEUES_PER_CONTROLLER_MAX: Final = 128
AER_LIMIT: Final = 4  # outstanding asynchronous event requests a controller (AERL is 0's based)
ABORT_LIMIT: Final = 4  # concurrent Abort commands (ACL is 0's based)
EVENTS_QUEUED_MAX: Final = 64  # asynchronous events waiting for a request, per controller
KATO_GRANULARITY_MS: Final = 100  # KAS = 1
KATO_MAX_MS: Final = 0xFFFFFFFF // 2
DISCOVERY_KATO_MS: Final = 120_000  # given to a discovery controller whose host asked for none
ENABLE_TIMEOUT_S: Final = 120.0  # a controller that was never enabled does not stay for ever
NAMESPACES_PER_SUBSYSTEM_MAX: Final = 1024
ANA_GROUPS_MAX: Final = 128
ERROR_LOG_ENTRIES: Final = 128

# NVMe/TCP
MAXH2CDATA_BYTES: Final = 128 * 1024
TRANSFER_BYTES_MAX: Final = 1024 * 1024  # MDTS in bytes (4 KiB << MDTS)
HPDA_MAX_DWORDS: Final = 31
CONNECT_TIMEOUT_S: Final = 10.0  # default time for ICReq and for Connect to arrive
TERM_CLOSE_TIMEOUT_S: Final = 5.0  # how long we wait for the peer's FIN after a C2HTermReq (spec allows 30 s)
UNCONNECTED_PEERS_MAX: Final = 4096  # sockets that have not completed Connect
PDU_BYTES_MAX: Final = 4 * 1024 * 1024  # no PDU that we accept is longer

# NVMe/RDMA
RDMA_ICD_BYTES_MAX: Final = 32 * 1024  # each receive buffer is so long, and a capsule goes up in one message
RDMA_FETCH_BYTES_MAX: Final = 60 * 1024  # data of a command that the control plane carries out: one message
RDMA_SRQ_DEPTH_MAX: Final = 65_535
RDMA_BACKLOG_DEFAULT: Final = 100  # SPDK's, also for a backlog below 1

# NVM command set
COPY_RANGES_MAX: Final = 128  # MSRC + 1
COPY_RANGE_BLOCKS_MAX: Final = 0xFFFF  # MSSRL
COPY_BYTES_MAX: Final = 64 * 1024 * 1024  # basis of MCL
DSM_RANGES_MAX: Final = 256

# Admin API
RPC_REQUEST_BYTES_MAX: Final = 32 * 1024 * 1024  # SPDK's SPDK_JSONRPC_RECV_BUF limit is the same
RPC_NESTING_MAX: Final = 32
RPC_CONNECTIONS_MAX: Final = 64
RPC_BATCH_MAX: Final = 1024
RPC_SEND_TIMEOUT_S: Final = 30.0  # a client that does not read its answer is cut off
RPC_WAIT_MAX_MS: Final = 600_000  # longest that bdev_get_bdevs waits for a bdev

# Configuration
SUBSYSTEMS_MAX: Final = 65_536  # upper bound of nvmf_set_max_subsystems
LISTENERS_PER_SUBSYSTEM_MAX: Final = 64
HOSTS_PER_SUBSYSTEM_MAX: Final = 4096
HOSTS_PER_NAMESPACE_MAX: Final = 1024
REFERRALS_MAX: Final = 1024
BDEVS_MAX: Final = 8192
BDEV_NAME_BYTES_MAX: Final = 255
BDEV_BYTES_MAX: Final = 1 << 62  # sizes stay within a signed 64 bit off_t
NVME_CONTROLLERS_MAX: Final = 256  # drives and targets that the data plane drives itself
EMULATED_POOLS_MAX: Final = 16
EMULATED_POOL_BYTES_MAX: Final = 1 << 34
POOL_BYTES_MIN: Final = 64 * 1024  # less is used up by the canary and one I/O
POOL_GRANULE_BYTES: Final = 4096
POOL_NAME_BYTES_MAX: Final = 63
NQN_LEN_MIN: Final = 11  # bytes, "nqn.yyyy-mm."
SERIAL_NUMBER_LEN_MAX: Final = 20  # bytes, Identify Controller SN
MODEL_NUMBER_LEN_MAX: Final = 40  # bytes, Identify Controller MN
