# Everything that can be done with a checkout. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PACKAGES := deploy/packages.txt
LAB_PACKAGES := tests/lab/packages.txt

# Options of `make run`, e.g. make run LISTEN=192.0.2.7
LISTEN ?=
RPC_SOCKET ?=
DEMO_OPTIONS = $(if $(LISTEN),--listen $(LISTEN)) $(if $(RPC_SOCKET),--rpc-socket $(RPC_SOCKET))

# An environment made in another place holds that place's path in its scripts.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
VENV_OPTIONS := --clear
endif

.PHONY: help setup native run test unit conformance lab lab-shell bench lint fmt docs coverage lock clean distclean packages lab-packages
.DEFAULT_GOAL := help

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: packages lab-packages $(STAMP) native ## Debian packages (with sudo if not root), .venv, the native data plane

native: packages $(STAMP) ## build nvmet-p2p-dataplane and nvmet-p2p-bench into build/native, where the daemon finds them
	@[ -e build/native/build.ninja ] || { mkdir -p build && \
	    PATH="$(CURDIR)/$(BIN):$$PATH" meson setup build/native native > build/native-setup.log || \
	    { cat build/native-setup.log; exit 1; }; }
	@$(BIN)/ninja -C build/native --quiet

run: packages $(STAMP) native ## start the target with a demonstration namespace; Ctrl-C ends it
	@$(BIN)/nvmet-p2p demo --serve .run/state --file .run/demo.img $(DEMO_OPTIONS)

test: setup ## every check and every test
	@$(BIN)/python .ci/suite.py

unit: packages $(STAMP) ## unit tests alone
	@$(BIN)/python .ci/suite.py unit

conformance: packages $(STAMP) native ## conformance tests alone: a raw initiator against the daemon
	@$(BIN)/python .ci/suite.py conformance

lab: setup ## lab tests alone: the Linux initiator in a QEMU guest
	@$(BIN)/python .ci/suite.py lab

lab-shell: setup ## a shell in a guest of the lab
	@$(BIN)/python -m tests.lab.shell

bench: packages $(STAMP) native ## benchmarks: tests/bench/bench_*.py
	@$(BIN)/pytest -o python_files='bench_*.py' -p no:xdist -q -s tests/bench

lint: packages $(STAMP) ## format, lint, import directions, types
	@$(BIN)/python .ci/suite.py checks

fmt: packages $(STAMP) ## put the Python files into the project's format
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

docs: packages $(STAMP) ## write the generated pages of docs/ again
	@set -e; for generator in tests/tools/gen_*.py; do [ ! -e "$$generator" ] || $(BIN)/python "$$generator"; done

coverage: packages $(STAMP) ## record which conformance test sends what, and write docs/coverage.md again
	@NVMET_P2P_COVERAGE=docs/coverage.json $(BIN)/pytest -q -m 'not slow' tests/conformance
	@$(BIN)/python tests/tools/gen_coverage.py

lock: $(STAMP) ## take the newest compatible packages and write requirements.txt
	@deploy/lock.sh $(BIN)

clean: ## remove what was built, and the demonstration's state
	rm -rf build .run .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find nvmet_p2p tests .ci -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf $(VENV)

packages:
	@deploy/install-packages.sh $(PACKAGES)

lab-packages:
	@deploy/install-packages.sh $(LAB_PACKAGES)

# The checkout itself is on the environment's path (a .pth), so an edit counts at once and nothing is built at import,
# as meson-python's own editable install would do. `pip install .` is the way to install a copy (docs/operating.md).
$(STAMP): requirements.txt | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than 3.11; name another one: make PYTHON=..." >&2; exit 1; }
	@[ -z "$(VENV_OPTIONS)" ] && [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	@echo "installing Python packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(VENV)/purelib
	@echo "$(CURDIR)" > "$$(cat $(VENV)/purelib)/nvmet_p2p.pth"
	@printf '#!%s\nfrom nvmet_p2p.cli.main import main\n\nmain()\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/nvmet-p2p
	@chmod +x $(BIN)/nvmet-p2p
	@echo "$(CURDIR)" > $@
