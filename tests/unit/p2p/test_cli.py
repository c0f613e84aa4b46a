"""``nvmet-p2p p2p map`` and ``doctor``: from a daemon, from this machine, and their exit codes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from nvmet_p2p.cli.main import main
from nvmet_p2p.p2p.doctor import doctor_document
from nvmet_p2p.p2p.render_text import doctor_text, map_text
from nvmet_p2p.p2p.report import map_document
from tests.unit.cli.rpc_server import result, serving
from tests.unit.p2p import machines


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["p2p", *map(str, arguments)])


@pytest.fixture
def machine(tmp_path: Path) -> machines.Machine:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.12.107\n")
    (tmp_path / "proc/cpuinfo").write_text(machines.XEON)
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_PCI_P2PDMA=y\n"))
    return machines.one_switch(tmp_path / "sys", acs=machines.REDIRECT)


@pytest.fixture
def tree(machine: machines.Machine, tmp_path: Path) -> tuple[str, ...]:
    return "--sysfs", str(machine.root), "--proc", str(tmp_path / "proc")


def test_map_of_a_recorded_tree(machine: machines.Machine, tree: tuple[str, ...]) -> None:
    done = run("map", *tree)
    assert done.exit_code == 0
    assert done.output == map_text(map_document(machine.topology()))
    assert json.loads(run("map", "--json", *tree).output) == map_document(machine.topology())


def test_doctor_of_a_recorded_tree(machine: machines.Machine, tree: tuple[str, ...]) -> None:
    done = run("doctor", *tree)
    assert done.exit_code == 1
    assert done.output == doctor_text(doctor_document(machine.topology()))
    assert json.loads(run("doctor", "--json", *tree).output)["problems"] == 1


def test_doctor_is_content(tmp_path: Path, tree: tuple[str, ...]) -> None:
    machine = machines.one_switch(tmp_path / "fine")
    done = run("doctor", "--sysfs", machine.root, *tree[2:])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "No problem found, 1 note.")


def test_a_picture(tree: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "map.svg"
    done = run("map", "--svg", path, *tree)
    assert (done.exit_code, done.output) == (0, "")
    ElementTree.parse(path)
    assert run("map", "--svg", "-", *tree).output == path.read_text(encoding="utf-8")


class TestDaemon:
    @pytest.mark.parametrize("command", ["map", "doctor"])
    def test_its_document_is_rendered(self, machine: machines.Machine, tmp_path: Path, command: str) -> None:
        documents = {
            "p2p_get_map": map_document(machine.topology()),
            "p2p_doctor": doctor_document(machine.topology()),
        }
        texts = {"map": map_text(documents["p2p_get_map"]), "doctor": doctor_text(documents["p2p_doctor"])}
        with serving(tmp_path / "rpc.sock", lambda method, params: result(documents[method])):
            done = run(command, "--rpc-socket", tmp_path / "rpc.sock")
        assert done.output == texts[command]
        assert done.exit_code == (command == "doctor")

    @pytest.mark.parametrize("command", ["map", "doctor"])
    def test_its_refusal_is_neither_fine_nor_a_finding(self, tmp_path: Path, command: str) -> None:
        def refuse(method: str, params: Any) -> bytes:
            return json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "no sysfs"}}).encode()

        with serving(tmp_path / "rpc.sock", refuse):
            done = run(command, "--rpc-socket", tmp_path / "rpc.sock")
        assert done.exit_code == 2
        assert "no sysfs" in done.output

    def test_without_one_this_machine_is_looked_at(self, tmp_path: Path) -> None:
        done = run("doctor", "--json", "--rpc-socket", tmp_path / "no.sock")
        assert done.exit_code in (0, 1)
        assert "No daemon answers" in done.stderr
        assert json.loads(done.stdout)["version"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("map", "--json", "--svg", "x.svg"), "exclude each other"),
        (("map", "--sysfs", "{tmp}"), "not a sysfs tree"),
        (("doctor", "--sysfs", "{tmp}"), "not a sysfs tree"),
        (("doctor", "--sysfs", "{tmp}/none"), "does not exist"),
        (("map", "--svg", "{tmp}/none/x.svg", "--sysfs", "{tmp}/sys"), "No such file"),
    ],
)
def test_errors_are_2(machine: machines.Machine, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run(*(text.format(tmp=tmp_path) for text in arguments))
    assert done.exit_code == 2
    assert words in done.output
