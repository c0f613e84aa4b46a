"""NVMe controllers that the native data plane drives itself, with SPDK: what it was told, and again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import structlog

from nvmet_p2p.dataplane.port import NOTHING_KNOWN, NvmeNamespace, SpdkStatus
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import BdevConfig, NvmeControllerConfig, NvmeHotplug, NvmeOptions
from nvmet_p2p.target.operations_nvme import TIMES, another
from nvmet_p2p.target.validate import METHOD_NOT_FOUND

log = structlog.get_logger()

Call = Callable[..., Awaitable[Any]]
NOT_BUILT: Final = "nvmet-p2p-dataplane is built without SPDK"
REFILL_S: Final = 5.0  # a target that does not answer holds up no restart: the daemon tries it again
PATH: Final = ("trtype", "traddr", "adrfam", "trsvcid", "subnqn", "hostnqn", "hostaddr", "hostsvcid")


def attach_params(
    controller: NvmeControllerConfig, options: NvmeOptions, known: Mapping[int, str] = NOTHING_KNOWN
) -> dict[str, Any]:
    """Parameters of the data plane's bdev_nvme_attach_controller; the options give the times that are not set.

    ``known``: identities of namespaces, by NSID.
    """
    given: dict[str, Any] = {"name": controller.name}
    given |= {name: getattr(controller, name) for name in PATH if getattr(controller, name)}
    if controller.trtype == "TCP":
        given |= {"hdgst": controller.hdgst, "ddgst": controller.ddgst}
    for name in TIMES:
        value = getattr(controller, name)
        given[name] = getattr(options, name) if value is None else value
    if known:
        given["namespaces"] = [{"nsid": nsid, "identity": identity} for nsid, identity in known.items()]
    return given


def options_params(options: NvmeOptions) -> dict[str, Any]:
    """Parameters of the data plane's bdev_nvme_set_options: all that it knows, always."""
    names = [name for name in NvmeOptions.__struct_fields__ if name != "hints"]
    return {name: getattr(options, name) for name in names}


def is_same(controller: NvmeControllerConfig, shown: Mapping[str, Any]) -> bool:
    """Whether a controller that is attached is the one that is wanted."""
    wanted = (controller.trtype.lower(), controller.traddr, controller.trsvcid)
    there = (str(shown.get("trtype", "")).lower(), shown.get("traddr", ""), shown.get("trsvcid") or "")
    return wanted == there and (not controller.subnqn or controller.subnqn == shown.get("subnqn"))


def row_of(shown: Mapping[str, Any]) -> dict[str, Any]:
    """A controller of bdev_nvme_get_controllers, which has them in SPDK's form, as ``port.NvmePlane`` has it."""
    ctrlr = dict(shown["ctrlrs"][0])
    path = {name: ctrlr.get("trid", {}).get(name) or "" for name in ("trtype", "adrfam", "traddr", "trsvcid", "subnqn")}
    names = {"serial": "serial_number", "model": "model_number", "firmware": "firmware_revision"}
    identity = {name: str(ctrlr.pop(theirs, "")).strip() for name, theirs in names.items()}
    ctrlr.pop("trid", None)
    return {**ctrlr, **path, **identity, "name": shown["name"], "hostnqn": ctrlr.pop("host", {}).get("nqn", "")}


def namespaces_of(rows: Iterable[Mapping[str, Any]]) -> tuple[NvmeNamespace, ...]:
    """The namespaces in an answer; one without a size is no back end, whatever the reason."""
    return tuple(
        NvmeNamespace(
            row["name"],
            int(row["nsid"]),
            row.get("uuid") or "",
            row.get("refused") or ("" if "block_size" in row else "the data plane has not opened it"),
            row.get("identity") or "",
        )
        for row in rows
    )


class NativeNvme:
    """Implements ``port.NvmePlane``. ``call`` makes a JSON-RPC call as ``NativeDataPlane._call`` does."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._attached: dict[str, NvmeControllerConfig] = {}
        self._known: dict[str, dict[int, str]] = {}  # identities of their namespaces
        self._options = NvmeOptions()
        self._hotplug = NvmeHotplug(enable=False)
        self._shown: dict[str, dict[str, Any]] = {}

    async def _ask(self, method: str, params: Mapping[str, Any] | None = None, **options: bool) -> Any:
        try:
            return await self._call(method, dict(params or {}), **options)
        except OperatorError as error:
            if error.code == METHOD_NOT_FOUND:
                raise OperatorError(-errno.EOPNOTSUPP, NOT_BUILT) from None
            raise

    async def attach(self, controller: NvmeControllerConfig, known: Mapping[int, str] = NOTHING_KNOWN) -> None:
        """One that is there already, of another daemon or of a call that took too long, is taken over."""
        try:
            await self._ask("bdev_nvme_attach_controller", attach_params(controller, self._options, known))
        except OperatorError as error:
            if error.code not in (-errno.EEXIST, -errno.EALREADY):
                raise
            (shown,) = await self._ask("bdev_nvme_get_controllers", {"name": controller.name})
            if not is_same(controller, row_of(shown)):
                raise
        self._attached[controller.name] = controller
        self._known[controller.name] = dict(known)

    async def detach(self, name: str) -> None:
        self._attached.pop(name, None)
        self._known.pop(name, None)
        self._shown.pop(name, None)
        try:
            await self._ask("bdev_nvme_detach_controller", {"name": name})
        except OperatorError as error:
            if error.code not in (-errno.ENODEV, -errno.ENOTCONN):  # gone with the helper
                raise

    async def set_options(self, options: NvmeOptions) -> None:
        await self._ask("bdev_nvme_set_options", options_params(options))
        self._options = options

    async def set_hotplug(self, hotplug: NvmeHotplug) -> None:
        await self._ask("bdev_nvme_set_hotplug", {"enable": hotplug.enable, "period_us": hotplug.period_us})
        self._hotplug = hotplug

    async def controllers(self) -> dict[str, dict[str, Any]]:
        try:
            rows = await self._ask("bdev_nvme_get_controllers", wait=False)
        except OperatorError as error:
            if error.code != -errno.EOPNOTSUPP:
                raise
            rows = []
        self._shown = {row["name"]: row_of(row) for row in rows}
        return self._shown

    def shown(self, name: str) -> dict[str, Any] | None:
        return self._shown.get(name)

    async def namespaces(self, name: str) -> tuple[NvmeNamespace, ...]:
        found = (await self.controllers()).get(name)
        return namespaces_of(found.get("namespaces", ())) if found is not None else ()

    async def bdev(self, call: Call, config: BdevConfig) -> dict[str, Any]:
        """The bdev of a namespace, which is there as long as its controller is, and its ``identity``.

        -ENODEV: it is lost, or there is none, or another one is in its place.
        """
        try:
            (controller,) = await call("bdev_nvme_get_controllers", {"name": config.controller})
            (shown,) = await call("bdev_get_bdevs", {"name": config.name})
        except OperatorError as error:
            text = f"its controller is absent, or has no such namespace: {config.name}"
            raise OperatorError(error.code, text) from None
        found = {row.nsid: row for row in namespaces_of(row_of(controller).get("namespaces", ()))}.get(config.nsid)
        fault = another(config, found.identity) or found.refused if found is not None else ""
        if fault or not shown.get("present", True):
            raise OperatorError(-errno.ENODEV, fault or f"{config.name} is lost")
        identity = found.identity if found is not None else ""
        if identity:
            self._known.setdefault(config.controller, {})[config.nsid] = identity
        return {**shown, "identity": identity}

    async def reset(self, name: str) -> None:
        await self._ask("bdev_nvme_reset_controller", {"name": name})

    async def health(self, name: str) -> dict[str, Any]:
        shown = await self._ask("bdev_nvme_get_controller_health_info", {"name": name})
        return {key: value.strip() if isinstance(value, str) else value for key, value in shown.items()}

    async def status(self) -> SpdkStatus:
        try:
            info = (await self._call("p2p_get_info", wait=False)).get("spdk") or {}
        except OperatorError as error:
            return SpdkStatus(False, reason=error.message)
        if not info.get("built"):
            return SpdkStatus(False, reason=NOT_BUILT)
        return SpdkStatus(True, str(info.get("version") or ""), bool(info.get("active")))

    async def leave(self, call: Call) -> None:
        """An orderly stop leaves a helper that is not ours without controllers."""
        for name in self._attached:
            with contextlib.suppress(OperatorError):
                await call("bdev_nvme_detach_controller", {"name": name})

    # -- a new helper ------------------------------------------------------------------------------------------------

    async def refill(self, call: Call) -> None:
        """Gives the controllers to a new helper, before the back ends on them. One that it cannot have is absent.

        Raises ``LinkLostError`` if the helper goes as well.
        """
        self._shown = {}
        if self._options != NvmeOptions():
            await _tolerant(call, "bdev_nvme_set_options", options_params(self._options))
        wanted = dict(self._attached)
        answers = await asyncio.gather(
            *(self._attach_again(call, controller) for controller in wanted.values()), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        if self._hotplug.enable:
            hotplug = {"enable": True, "period_us": self._hotplug.period_us}
            await _tolerant(call, "bdev_nvme_set_hotplug", hotplug)

    async def _attach_again(self, call: Call, controller: NvmeControllerConfig) -> None:
        params = attach_params(controller, self._options, self._known.get(controller.name, NOTHING_KNOWN))
        try:
            async with asyncio.timeout(REFILL_S):
                await _tolerant(call, "bdev_nvme_attach_controller", params, controller.name)
        except TimeoutError:
            log.error("nvme.absent", controller=controller.name, reason=f"it did not come within {REFILL_S:g} s")


async def _tolerant(call: Call, method: str, params: dict[str, Any], name: str = "") -> None:
    try:
        await call(method, params)
    except OperatorError as error:
        if error.code not in (-errno.EEXIST, -errno.EALREADY):
            log.error("nvme.absent", controller=name, method=method, reason=error.message)
