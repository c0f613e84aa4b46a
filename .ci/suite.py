"""Runs the project's checks and tests, fast ones first, and ends with one line that counts.

python .ci/suite.py [checks] [native] [unit] [conformance] [lab]      (all, when none is named)

A failed stage does not stop the following ones. The lab's guest image, minutes of downloads on a fresh machine, is
built beside the stages before it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
REPORTS = ROOT / "build/reports"
CORES = os.cpu_count() or 1

CHECKS = {
    "mypy": ["mypy"],
    "ruff check": ["ruff", "check", "--quiet"],
    "ruff format": ["ruff", "format", "--check", "--quiet"],
    "import-linter": ["lint-imports", "--no-logo"],
}
# Unit tests, which is every folder without a stage of its own, spread over the cores. The others start daemons or
# guests and watch times: one after the other.
TESTS = {
    "unit": ["-n", str(CORES), "--dist", "worksteal", "--ignore=tests/conformance", "--ignore=tests/lab", "tests"],
    "conformance": ["tests/conformance"],
    "lab": ["tests/lab"],
}
# A lab test that cannot run, and a data plane that is not built, are failures here.
ENVIRONMENT = {**os.environ, "NVMET_P2P_LAB": "require", "NVMET_P2P_NATIVE": "require"}
NATIVE = ROOT / "build/native-check"  # warnings are errors; clang with ASan and UBSan; unit tests and fuzzers
FUZZ_S = 10  # for each harness; issues and releases have longer runs


@dataclass
class Outcome:
    """Counts of one stage; ``failed`` includes errors, and a stage that ended without a report."""

    name: str
    passed: int = 0
    skipped: int = 0
    failed: int = 0


def main(stages: list[str]) -> int:
    """Runs the stages named, all when none is; the exit status for the shell."""
    known = ["checks", "native", *TESTS]
    if unknown := [stage for stage in stages if stage not in known]:
        print(f"no such stage: {unknown[0]} (there are: {', '.join(known)})", file=sys.stderr)
        return 2
    stages = [stage for stage in known if not stages or stage in stages]
    started = time.monotonic()
    REPORTS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as background:
        image = background.submit(build_image) if "lab" in stages else None
        outcomes = []
        for stage in stages:
            banner(stage)
            if stage == "lab" and image is not None and not image.result():
                outcomes.append(Outcome("lab image", failed=1))
            else:
                special = {"checks": run_checks, "native": run_native}.get(stage)
                outcomes.append(special() if special is not None else run_tests(stage))
    return report(outcomes, time.monotonic() - started)


def run_checks() -> Outcome:
    """All checks, as many at a time as there are cores; the output of those that failed."""

    def check(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / arguments[0]), *arguments[1:]]
        return subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )

    outcome = Outcome("checks")
    with ThreadPoolExecutor(CORES) as pool:
        for name, done in zip(CHECKS, pool.map(check, CHECKS.values()), strict=True):
            print(f"{name}: {'passed' if done.returncode == 0 else 'FAILED'}", flush=True)
            if done.returncode == 0:
                outcome.passed += 1
            else:
                outcome.failed += 1
                print(done.stdout, flush=True)
    return outcome


def run_native() -> Outcome:
    """Builds native/ with every warning an error, runs its unit tests and, for a short time, its fuzzers."""
    outcome = Outcome("native")
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    log = REPORTS / "native.log"
    if not (NATIVE / "build.ninja").exists():
        options = ["-Dengine=enabled", "-Dtests=enabled", "-Dfuzz=enabled", "-Dsanitize=address"]
        command = ["meson", "setup", str(NATIVE), "native", "--werror", "-Db_lundef=false", *options]
        count(outcome, "meson setup", command, log, path | {"CC": "clang"})
    if outcome.failed or not count(outcome, "build", ["ninja", "-C", str(NATIVE)], log, path):
        return outcome
    count(outcome, "unit tests", ["meson", "test", "-C", str(NATIVE), "--print-errorlogs"], log, path)
    for harness in sorted(path for path in (NATIVE / "fuzz").glob("fuzz_*") if path.is_file()):
        found, seeds = NATIVE / "corpus" / harness.name, ROOT / "native/fuzz/corpus" / harness.name
        found.mkdir(parents=True, exist_ok=True)
        command = [str(harness), f"-max_total_time={FUZZ_S}", f"-artifact_prefix={found.parent}/", str(found)]
        command += [str(seeds)] if seeds.is_dir() else []
        count(outcome, harness.name, command, log, {})
    return outcome


def count(outcome: Outcome, name: str, command: list[str], log: Path, environment: dict[str, str]) -> bool:
    """Runs a step and counts it; the end of its output if it failed."""
    with log.open("w+", encoding="utf-8", errors="replace") as output:
        status = subprocess.run(
            command, cwd=ROOT, env=ENVIRONMENT | environment, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
        output.seek(0)
        print(f"{name}: {'passed' if status == 0 else 'FAILED'}", flush=True)
        if status == 0:
            outcome.passed += 1
        else:
            outcome.failed += 1
            print(output.read()[-8000:], flush=True)
    return status == 0


def run_tests(stage: str) -> Outcome:
    """One pytest run, counted from its JUnit report."""
    xml = REPORTS / f"{stage}.xml"
    xml.unlink(missing_ok=True)
    command = [str(BIN / "pytest"), "-q", f"--junitxml={xml}", *TESTS[stage]]
    status = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False).returncode
    outcome = Outcome(stage)
    if xml.exists():
        for suite in ElementTree.parse(xml).getroot().iter("testsuite"):
            tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            outcome.skipped += skipped
            outcome.failed += failed
            outcome.passed += tests - skipped - failed
    if status != 0 and outcome.failed == 0:
        outcome.failed = 1  # pytest itself could not go on, or found no test
    return outcome


def build_image() -> bool:
    """Builds the lab's guest image unless it is there; its output is shown only if it fails."""
    log = REPORTS / "lab-image.log"
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "tests.lab.image"]
        status = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status != 0:
        print(f"the lab's image could not be built:\n{log.read_text(encoding='utf-8')[-4000:]}", flush=True)
    return status == 0


def report(outcomes: list[Outcome], seconds: float) -> int:
    """The closing line."""
    failed = sum(outcome.failed for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    parts = ", ".join(f"{outcome.passed} {outcome.name}" for outcome in outcomes)
    verdict = "FAILED" if failed else "passed"
    duration = f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    banner("summary")
    if any(outcome.name in ("conformance", "lab") for outcome in outcomes) and not has_spdk():
        print("NOT TESTED: drives and targets over SPDK; nvmet-p2p-dataplane is built without it (docs/testing.md)")
    print(f"suite {verdict}: passed {parts}; {failed} failed, {skipped} skipped; {duration}", flush=True)
    return 1 if failed else 0


def has_spdk() -> bool:
    """Whether the data plane that was tested has SPDK in it."""
    program = os.environ.get("NVMET_P2P_DATAPLANE") or str(ROOT / "build/native/nvmet-p2p-dataplane")
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return " with " in done.stdout


def banner(text: str) -> None:
    """A line that is easily found in a long log."""
    print(f"\n== {text} {'=' * (100 - len(text))}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
