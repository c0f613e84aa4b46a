"""The methods that change the configuration: each is an operation, committed."""

from __future__ import annotations

import os
from typing import Any, Final

from msgspec.structs import replace

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server.context import Context
from nvmet_p2p.server.schema import Handler, Method
from nvmet_p2p.target.operations_bdev import OPERATIONS, with_uuid
from nvmet_p2p.target.request_types import Request
from nvmet_p2p.target.requests_bdev import AioCreate, UringCreate
from nvmet_p2p.target.requests_nvmf import AddListener
from nvmet_p2p.target.requests_staging import SetStaging
from nvmet_p2p.target.validate import INVALID_PARAMS

EXISTS = "the name or UUID is taken (-17)"
TRUE = "true"
NAME = "name of the bdev"

# method -> summary, result, codes beside -32602 and -95 that SPDK gives as well
_ABOUT: Final[dict[str, tuple[str, str, dict[int, str]]]] = {
    "bdev_malloc_create": (
        "Make a bdev in memory. It is empty after a restart of the daemon.",
        NAME,
        {-17: EXISTS, -22: "a size is not possible", -12: "not enough memory"},
    ),
    "bdev_malloc_delete": ("Delete a malloc bdev, and the namespace on it.", TRUE, {-19: "there is no such bdev"}),
    "bdev_null_create": (
        "Make a bdev that forgets what is written and reads zeroes.",
        NAME,
        {-17: EXISTS, -22: "a size is not possible"},
    ),
    "bdev_null_delete": ("Delete a null bdev, and the namespace on it.", TRUE, {-19: "there is no such bdev"}),
    "bdev_null_resize": (
        "Make a null bdev larger.",
        TRUE,
        {-19: "there is no such bdev", -22: "of another kind, or smaller than now"},
    ),
    "bdev_aio_create": (
        "Open a file or block device as a bdev.",
        NAME,
        {-17: EXISTS, -22: "the block size does not fit", -2: "there is no such file, and other errors of open(2)"},
    ),
    "bdev_aio_delete": ("Close an aio bdev, and remove the namespace on it.", TRUE, {-19: "there is no such bdev"}),
    "bdev_uring_create": (
        "Open a file or block device as a bdev, with io_uring where the data plane has it.",
        NAME,
        {-17: EXISTS, -22: "the block size does not fit", -2: "there is no such file, and other errors of open(2)"},
    ),
    "bdev_uring_delete": ("Close a uring bdev, and remove the namespace on it.", TRUE, {-19: "there is no such bdev"}),
    "bdev_delay_create": (
        "Make a bdev that is another one with longer latencies. Native data plane only.",
        NAME,
        {-17: EXISTS, -19: "there is no such base", -1: "the base is in use", -95: "the data plane has none"},
    ),
    "bdev_delay_delete": ("Delete a delay bdev, and the namespace on it.", TRUE, {-19: "there is no such bdev"}),
    "bdev_delay_update_latency": (
        "Change a latency of a delay bdev.",
        TRUE,
        {-19: "there is no such bdev", -22: "it is of another kind", -95: "the data plane has none"},
    ),
    "bdev_error_create": (
        "Make a bdev that is another one, into which errors can be injected. Native data plane only.",
        NAME,
        {-17: EXISTS, -19: "there is no such base", -1: "the base is in use", -95: "the data plane has none"},
    ),
    "bdev_error_delete": ("Delete an error bdev, and the namespace on it.", TRUE, {-19: "there is no such bdev"}),
    "bdev_cmb_create": (
        "Make a bdev of a provider's memory: small, fast, volatile. Native data plane only.",
        NAME,
        {
            -17: EXISTS,
            -19: "there is no such provider",
            -22: "a size is not possible",
            -12: "the provider has not so much memory left",
            -95: "the data plane has none",
        },
    ),
    "bdev_cmb_delete": ("Delete a bdev on a provider's memory, and the namespace on it.", TRUE, {-19: "there is none"}),
    "p2p_emulated_pool_create": (
        "Make a pool of host memory that is treated as a drive's CMB: for trying it out, and for tests. It is no "
        "peer-to-peer, and everything that shows it says so. `auto` never chooses it.",
        "name of the pool",
        {-17: "there is one of that name", -28: "there are too many", -95: "the data plane has no pools"},
    ),
    "p2p_emulated_pool_delete": (
        "Delete an emulated pool that nothing names any more.",
        TRUE,
        {-19: "there is none", -16: "a policy names it, or a bdev is on it"},
    ),
    "p2p_set_staging": (
        "Set where the data of reads, writes and copies rests on its way: for the target, a subsystem, one of its "
        "listeners or one of its namespaces. The narrowest that was set holds: namespace, listener, subsystem, target. "
        "p2p_get_staging shows what comes of it.",
        TRUE,
        {
            -19: "there is no such provider (strict) or emulated pool",
            -22: "strict: the pool is smaller than the largest transfer, or data did not come back as written",
            -95: "strict: the data plane has no pools, or the back end is not on a drive that could reach one",
            -113: "strict: a drive of the back end cannot reach the provider",
        },
    ),
    "bdev_set_qos_limit": (
        "Limit the I/O of a bdev. What is not given stays. Native data plane only.",
        TRUE,
        {
            -19: "there is no such bdev",
            -22: "nothing is given, or limits that contradict",
            -95: "the data plane has none",
        },
    ),
    "nvmf_set_config": ("Set what concerns the target as a whole. At any time, unlike in SPDK.", TRUE, {}),
    "nvmf_set_max_subsystems": ("Set how many subsystems there may be. At any time, unlike in SPDK.", TRUE, {}),
    "nvmf_set_crdt": ("Set the Command Retry Delay Times. At any time, unlike in SPDK.", TRUE, {}),
    "nvmf_create_transport": (
        "Make a transport, with its options.",
        TRUE,
        {-32603: "it exists, or an option is wrong"},
    ),
    "nvmf_discovery_add_referral": (
        "Refer hosts to another discovery service. One that is there already is left as it is.",
        TRUE,
        {-32603: "the NQN or the port is missing or wrong, or there is no such target"},
    ),
    "nvmf_discovery_remove_referral": ("Remove a referral.", TRUE, {-32603: "there is no such referral"}),
    "nvmf_create_subsystem": (
        "Make an NVM subsystem.",
        TRUE,
        {-32603: "the NQN is wrong or taken, or there are too many subsystems"},
    ),
    "nvmf_delete_subsystem": ("Delete a subsystem; its hosts are disconnected.", TRUE, {}),
    "nvmf_subsystem_add_host": (
        "Let a host connect to a subsystem.",
        TRUE,
        {-32603: "the host's NQN is wrong, or it is on the list"},
    ),
    "nvmf_subsystem_remove_host": (
        "Take a host off the list of a subsystem, and disconnect it.",
        TRUE,
        {-32603: "the host is not on the list"},
    ),
    "p2p_subsystem_set_controller_model": (
        "Let hosts of a subsystem choose their controller identifier (static), or not.",
        TRUE,
        {-16: "the subsystem has listeners"},
    ),
    "nvmf_subsystem_allow_any_host": ("Let every host connect, or only those on the list.", TRUE, {}),
    "nvmf_subsystem_add_ns": (
        "Add a namespace on a bdev. A bdev serves one namespace at most.",
        "the namespace's ID",
        {},
    ),
    "nvmf_subsystem_remove_ns": ("Remove a namespace.", TRUE, {}),
    "nvmf_subsystem_set_ns_ana_group": ("Put a namespace into another ANA group.", TRUE, {}),
    "nvmf_ns_add_host": ("Show a namespace that was added with no_auto_visible to a host.", TRUE, {}),
    "nvmf_ns_remove_host": ("Hide a namespace that was added with no_auto_visible from a host.", TRUE, {}),
    "nvmf_subsystem_add_listener": (
        "Listen on an address for a subsystem. Several subsystems may share an address.",
        TRUE,
        {},
    ),
    "nvmf_subsystem_remove_listener": ("Stop listening on an address for a subsystem.", TRUE, {}),
    "nvmf_subsystem_listener_set_ana_state": (
        "Set the ANA state of one or all groups of a subsystem on one of its listeners.",
        TRUE,
        {-32603: "there is no such listener or group, or the subsystem has no ana_reporting"},
    ),
}
_RESULT_TYPES: Final[dict[str, Any]] = {NAME: str, "name of the pool": str, "the namespace's ID": int, TRUE: bool}


def _handler(name: str) -> Handler:
    operation = OPERATIONS[name]

    async def handle(context: Context, request: Request) -> Any:
        completed = with_uuid(_with_absolute_path(request), context.new_uuid)
        change = operation.apply(context.config, completed)
        if change.config != context.config:
            try:
                await context.commit(change.config)
            except OperatorError as error:
                if isinstance(request, AddListener):  # SPDK's code where the address cannot be bound
                    raise OperatorError(INVALID_PARAMS, f"params.listen_address: {error.message}") from None
                raise
            if isinstance(request, SetStaging):
                await context.staging.settled()
        return change.result

    return handle


def _with_absolute_path(request: Request) -> Request:
    if isinstance(request, AioCreate | UringCreate) and request.filename and "\0" not in request.filename:
        return replace(request, filename=os.path.abspath(request.filename))
    return request


CHANGES: Final = tuple(
    Method(
        name=name,
        params=OPERATIONS[name].request,
        handler=_handler(name),
        summary=summary,
        result=result,
        result_type=_RESULT_TYPES[result],
        changes=True,
        errors=errors,
        spdk=not name.startswith(("p2p_", "bdev_cmb_")),
    )
    for name, (summary, result, errors) in _ABOUT.items()
)
