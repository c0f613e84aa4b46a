"""Parameters of the methods that change where data is staged. They are ours: SPDK has no such thing."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from nvmet_p2p import limits
from nvmet_p2p.target.request_types import U32, U64, UNSET, Request, UnsetType, doc
from nvmet_p2p.target.requests_bdev import BdevCreate, NewName
from nvmet_p2p.target.requests_nvmf import ListenAddressParams

PoolBytes = Annotated[
    int,
    Meta(
        ge=limits.POOL_BYTES_MIN,
        le=limits.EMULATED_POOL_BYTES_MAX,
        multiple_of=limits.POOL_GRANULE_BYTES,
        description="Bytes of the pool",
    ),
]
INHERIT: Final = "inherit"


class SetStaging(Request, frozen=True, kw_only=True):
    """p2p_set_staging"""

    policy: Annotated[
        str,
        doc(
            "off: host memory; auto: the nearest provider that its measurements speak for; the PCI address of a "
            "provider or the name of an emulated pool: that one; inherit: as the next wider one says (namespace, "
            "listener, subsystem, target)"
        ),
    ]
    mode: Annotated[
        Literal["prefer", "strict"],
        doc(
            "prefer: host memory where the pool cannot be had; strict: this call fails where the pool cannot be used, "
            "and an I/O waits for an exhausted pool"
        ),
    ] = "prefer"
    nqn: Annotated[str | UnsetType, doc("NQN of the subsystem it is for; without it, the target as a whole")] = UNSET
    nsid: Annotated[U32 | UnsetType, doc("Namespace of the subsystem; without it, the subsystem as a whole")] = UNSET
    listen_address: Annotated[
        ListenAddressParams | UnsetType, doc("Listener of the subsystem; without it, the subsystem as a whole")
    ] = UNSET


class EmulatedPoolCreate(Request, frozen=True, kw_only=True):
    """p2p_emulated_pool_create"""

    name: Annotated[str, doc("Name of the new pool")]
    bytes: PoolBytes


class EmulatedPoolDelete(Request, frozen=True, kw_only=True):
    """p2p_emulated_pool_delete"""

    name: Annotated[str, doc("Name of the pool")]


class CmbCreate(BdevCreate, frozen=True, kw_only=True):
    """bdev_cmb_create"""

    name: NewName
    provider: Annotated[str, doc("PCI address of the drive whose CMB it is, or name of an emulated pool")]
    block_size: Annotated[U32, doc("Bytes of a block, a power of two, at least 512")] = 4096
    num_blocks: Annotated[U64, doc("Number of blocks")]
