"""``setup status`` and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from nvmet_p2p.cli import main as cli
from nvmet_p2p.setup import report
from nvmet_p2p.setup.binding import Wish, bind
from nvmet_p2p.setup.machine import Kernel, Machine, SetupError
from nvmet_p2p.setup.record import RecordFile
from tests.unit.setup.fake import Made

A, B = "0000:01:00.0", "0000:02:00.0"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_a_machine_ready_and_bound(made: Made, tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "state")
    with file.locked():
        bind(made.machine, file, Wish(drives=[A], hugepages=16))
    made.text("40/limits", "Max locked memory         unlimited            unlimited            bytes")
    made.opens(40, "dataplane", "/dev/vfio/0")
    record, _ = file.load(made.machine.boot_id)
    facts = report.document(made.machine, record, served={}, processes=[40])
    assert facts["memlock"] == {"40": "unlimited"}
    assert facts["notes"] == []
    first, second = facts["drives"]
    assert (first["driver"], first["bound_by_setup"], first["driver_before"]) == ("vfio-pci", True, "nvme")
    assert first["in_use"] == ["open in dataplane (40)"]
    assert (second["driver"], second["bound_by_setup"], second["in_use"]) == ("nvme", False, [])
    assert second["names"] == ["nvme1", "nvme1n1"]
    text = report.text(facts)
    assert f"{A} (nvme0, nvme0n1): vfio-pci, IOMMU group 0; bound by setup, `restore` gives it to nvme" in text
    assert f"{B} (nvme1, nvme1n1): nvme, IOMMU group 1; can be bound" in text
    assert "node 1: 16 huge pages of 2 MiB, 8 free (8 before)" in text


def test_what_stands_in_the_way(tmp_path: Path) -> None:
    made = Made(tmp_path, iommu=False)
    made.text("self/limits", "Max locked memory         8388608              8388608              bytes")
    made.opens(77, "fio", "/dev/nvme0n1")
    record, _ = RecordFile(tmp_path).load(made.machine.boot_id)
    text = report.text(report.document(made.machine, record, served={}))
    assert f"{A} (nvme0, nvme0n1): nvme, no IOMMU group; cannot be bound:\n    nvme0n1 is open in fio (77)" in text
    assert f"{B} (nvme1, nvme1n1): nvme, no IOMMU group; can be bound with --noiommu only" in text
    assert "note: no IOMMU" in text
    assert "note: driver vfio-pci is not loaded" in text
    assert "note: this shell may lock 8 MiB" in text


def test_the_command(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "running", classmethod(lambda cls: made.machine))

    def call(*words: str) -> tuple[int, str]:
        places = ["--rpc-socket", str(tmp_path / "none"), "--record-dir", str(tmp_path / "record")]
        done = CliRunner().invoke(cli.main, ["setup", *places, *words])
        return done.exit_code, done.output

    assert call("bind", A, "--hugepages", "9") == (
        0,
        f"node 0: 8 -> 9 huge pages of 2 MiB\nnode 1: 8 -> 9 huge pages of 2 MiB\n"
        f"{A}: nvme -> vfio-pci (/dev/vfio/0)\n",
    )
    assert '"bound_by_setup": true' in call("status", "--json")[1]
    assert call("bind", "0000:09:00.0") == (1, "Error: there is no PCI device 0000:09:00.0\n")
    assert call("restore")[0] == 0
    assert made.drivers() == ("nvme", "nvme")


class TestKernel:
    """The running kernel's side, as far as files go."""

    def test_a_write_that_fails_says_where(self, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match="gone: No such file"):
            Kernel().write(str(tmp_path / "gone"), "1")
        file = tmp_path / "there"
        file.touch()
        Kernel().write(str(file), "vfio-pci")
        assert file.read_text() == "vfio-pci"

    def test_a_node_that_is_not_there_is_unknown(self, tmp_path: Path) -> None:
        assert Kernel().is_claimed(str(tmp_path / "nvme0n1")) is None
