"""Each operation on back ends: what it does, each refusal with its code, each limit at the limit and one more."""

from __future__ import annotations

import pytest

from nvmet_p2p import limits
from nvmet_p2p.target.config import BdevConfig, TargetConfig
from nvmet_p2p.target.operations import find_bdev
from tests.unit.target.changing import NQN, Config, typical


@pytest.fixture
def config() -> Config:
    return typical()


def test_malloc_names_and_defaults() -> None:
    config = Config()
    assert config.do("bdev_malloc_create", block_size=4096, num_blocks=1) == "Malloc0"
    assert config.do("bdev_malloc_create", block_size=512, num_blocks=1, name="Malloc2") == "Malloc2"
    assert config.do("bdev_malloc_create", block_size=512, num_blocks=1) == "Malloc1"
    assert config.do("bdev_malloc_create", block_size=512, num_blocks=1) == "Malloc3"
    assert config.value.bdevs["Malloc0"].physical_block_size == 4096


def test_bdev_uuids() -> None:
    config = Config()
    uuid = "CECCF520-691E-4B46-9546-34AF789907C5"
    config.do("bdev_null_create", name="a", block_size=512, num_blocks=1, uuid=uuid)
    assert config.value.bdevs["a"].uuid == uuid.lower()
    assert find_bdev(config.value, uuid) == config.value.bdevs["a"]
    config.do("bdev_null_create", name="b", block_size=512, num_blocks=1, uuid="00000000-0000-0000-0000-000000000000")
    assert config.value.bdevs["b"].uuid.startswith("00000000-0000-4000")
    config.refused(
        -17, "'a' has the name or UUID", "bdev_null_create", name="c", block_size=512, num_blocks=1, uuid=uuid
    )
    config.refused(-17, "'a' has the name or UUID", "bdev_null_create", name=uuid, block_size=512, num_blocks=1)
    config.refused(-32602, "not a UUID", "bdev_null_create", name="c", block_size=512, num_blocks=1, uuid="1")


@pytest.mark.parametrize("size", [0, 1, 511, 513, 520, 1536, 65_536 * 2])
def test_bad_block_sizes(size: int) -> None:
    config = Config()
    config.refused(-22, "params.block_size", "bdev_malloc_create", block_size=size, num_blocks=1)
    config.refused(-22, "params.block_size", "bdev_null_create", name="n", block_size=size, num_blocks=1)
    if size:
        config.refused(-22, "params.block_size", "bdev_aio_create", name="a", filename="/a", block_size=size)
        config.refused(-22, "params.block_size", "bdev_uring_create", name="a", filename="/a", block_size=size)
        config.refused(
            -22, "params.physical", "bdev_malloc_create", block_size=512, num_blocks=1, physical_block_size=size
        )


def test_good_block_sizes() -> None:
    config = Config()
    for size in (512, 4096, 65_536):
        config.do("bdev_malloc_create", block_size=size, num_blocks=1, physical_block_size=size)


def test_bdev_sizes() -> None:
    config = Config()
    most = limits.BDEV_BYTES_MAX // 512
    config.do("bdev_null_create", name="n", block_size=512, num_blocks=most)
    config.refused(-22, "more than", "bdev_null_create", name="o", block_size=512, num_blocks=most + 1)
    config.refused(-22, "at least 1", "bdev_null_create", name="o", block_size=512, num_blocks=0)
    config.refused(-22, "at least 1", "bdev_malloc_create", name="o", block_size=512, num_blocks=0)


def test_bdev_names() -> None:
    config = Config()
    config.do("bdev_null_create", name="n" * limits.BDEV_NAME_BYTES_MAX, block_size=512, num_blocks=1)
    for name in ("", "n" * (limits.BDEV_NAME_BYTES_MAX + 1), "ö" * 128, "a\nb"):
        config.refused(-22, "params.name", "bdev_null_create", name=name, block_size=512, num_blocks=1)
    config.refused(-17, "File exists", "bdev_null_create", name="n" * 255, block_size=512, num_blocks=1)


def test_bdev_limit() -> None:
    config = Config()
    many = {
        f"b{n}": BdevConfig(name=f"b{n}", kind="null", uuid=f"00000000-0000-4000-9000-{n:012x}")
        for n in range(limits.BDEVS_MAX - 1)
    }
    config.value = TargetConfig(bdevs=many)
    config.do("bdev_malloc_create", block_size=512, num_blocks=1)
    config.refused(-28, "the most", "bdev_malloc_create", block_size=512, num_blocks=1)


def test_files() -> None:
    config = Config()
    assert config.do("bdev_aio_create", name="a", filename="/a", readonly=True, fallocate=True, nowait=True) == "a"
    assert config.do("bdev_uring_create", name="u", filename="/u", block_size=4096) == "u"
    assert config.value.bdevs["a"].block_size == 0
    config.refused(-22, "absolute", "bdev_aio_create", name="b", filename="b")
    config.refused(-22, "absolute", "bdev_uring_create", name="b", filename="")
    config.refused(-22, "absolute", "bdev_uring_create", name="b", filename="/a\x00")


@pytest.mark.parametrize("kind", ["malloc", "null", "aio", "uring"])
def test_delete_takes_the_namespace_along(config: Config, kind: str) -> None:
    config.do("bdev_null_create", name="null", block_size=512, num_blocks=1)
    config.do("bdev_aio_create", name="aio", filename="/a")
    config.do("bdev_uring_create", name="uring", filename="/u")
    config.do("bdev_malloc_create", name="malloc", block_size=512, num_blocks=1)
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": kind})
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m0"})
    other = "aio" if kind != "aio" else "uring"
    config.refused(-19, f"is of kind {other}", f"bdev_{kind}_delete", name=other)
    config.do(f"bdev_{kind}_delete", name=kind)
    assert kind not in config.value.bdevs
    assert list(config.one.namespaces) == [2]
    config.refused(-19, "No such device: there is no bdev", f"bdev_{kind}_delete", name=kind)


def test_resize_null(config: Config) -> None:
    config.do("bdev_null_create", name="n", block_size=4096, num_blocks=257)
    config.do("bdev_null_resize", name="n", new_size=2)
    assert config.value.bdevs["n"].num_blocks == 512
    config.do("bdev_null_resize", name="n", new_size=2)
    config.refused(-22, "less than", "bdev_null_resize", name="n", new_size=1)
    config.refused(-22, "kind malloc", "bdev_null_resize", name="m0", new_size=1)
    config.refused(-19, "no bdev", "bdev_null_resize", name="x", new_size=1)
    most = limits.BDEV_BYTES_MAX // (1024 * 1024)
    config.do("bdev_null_resize", name="n", new_size=most)
    config.refused(-22, "more than", "bdev_null_resize", name="n", new_size=most + 1)
    config.do("bdev_null_create", name="small", block_size=512, num_blocks=1)
    config.refused(-22, "at least one block", "bdev_null_resize", name="small", new_size=0)
