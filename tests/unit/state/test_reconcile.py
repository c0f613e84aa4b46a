"""From one configuration to another: what is opened, bound, released."""

from __future__ import annotations

import msgspec

from nvmet_p2p.state.reconcile import Plan, plan
from nvmet_p2p.target.config import BdevConfig, ListenAddress, ListenerConfig, SubsystemConfig, TargetConfig


def address(port: int) -> ListenAddress:
    return ListenAddress(trtype="TCP", adrfam="IPv4", traddr="127.0.0.1", trsvcid=str(port))


def bdev(name: str, blocks: int = 8) -> BdevConfig:
    return BdevConfig(name=name, kind="null", uuid=name, num_blocks=blocks, block_size=512)


def target(bdevs: dict[str, BdevConfig], **ports: list[int]) -> TargetConfig:
    return TargetConfig(
        bdevs=bdevs,
        subsystems={
            nqn: SubsystemConfig(nqn=nqn, listeners=tuple(ListenerConfig(address=address(p)) for p in listen))
            for nqn, listen in ports.items()
        },
    )


def test_equal_configurations_need_nothing() -> None:
    config = target({"a": bdev("a")}, x=[1, 2])
    assert plan(config, config) == Plan()


def test_start_up_is_the_plan_from_nothing() -> None:
    config = target({"a": bdev("a"), "b": bdev("b")}, x=[1], y=[2, 1])
    assert plan(TargetConfig(), config) == Plan(open_bdevs=(bdev("a"), bdev("b")), bind=(address(1), address(2)))


def test_an_address_stays_bound_while_one_subsystem_uses_it() -> None:
    both, one, none = target({}, x=[1], y=[1]), target({}, x=[], y=[1]), target({}, x=[], y=[])
    assert plan(both, one) == Plan()
    assert plan(one, none) == Plan(unbind=(address(1),))


def test_resize_and_removal() -> None:
    old, new = target({"a": bdev("a"), "b": bdev("b")}), target({"a": bdev("a", 16)})
    assert plan(old, new) == Plan(resize_bdevs=((bdev("a"), bdev("a", 16)),), close_bdevs=(bdev("b"),))


def test_ana_and_names_need_neither_sockets_nor_back_ends() -> None:
    old = target({"a": bdev("a")}, x=[1])
    listener = ListenerConfig(address=address(1), ana_states={1: "inaccessible"})
    new = msgspec.structs.replace(old, subsystems={"x": SubsystemConfig(nqn="x", listeners=(listener,))})
    assert plan(old, new) == Plan()
