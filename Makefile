# Thin and obvious: each target is one command a person could type.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-power-cuts mutants test-contention test-cluster test-cluster-chaos test-chaos test-compat soak test-system deb dist lock lint types bench clean

run: $(VENV)/.demo
	$(BIN)/s3spool demo

# Most tests wait for a process or a clock: three times as many as there are CPUs run side by side.
# Each daemon is a process of its own, and starts a sixth slower where bytecode is not kept.
test: $(VENV)/.dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $$((3 * $$(nproc))) --maxprocesses 8 --dist worksteal

# Change one place of the source at a time and expect a test to fail; SEED=n samples the same places again.
mutants: COUNT ?= 400
mutants: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m mutation --count $(COUNT) $(if $(SEED),--seed $(SEED))

# Crowds and contention in whole, an hour's quarter at most; writes docs/contention.md. `make test` has a part of it.
test-contention: SCALE ?= 1
test-contention: $(VENV)/.dev
	CONTENTION_SCALE=$(SCALE) CONTENTION_TABLE=docs/contention.md \
	$(BIN)/python -m pytest -m "" -p no:randomly tests/contention

# Kills, faults and restless writers for ten minutes at most; CHAOS_SEED=n replays, CHAOS_MINUTES=n lasts longer.
test-chaos: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'chaos and not slow and not cluster' tests/chaos

# The power is cut at each named step and at random, on loop devices: root, e2fsprogs, xfsprogs; ten minutes.
test-power-cuts: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'chaos and slow' tests/chaos

# Several daemons on one folder, with a PostgreSQL of their own (apt install postgresql); four minutes at most.
test-cluster: $(VENV)/.dev
	$(BIN)/python -m pytest -m cluster tests/cluster

# Chaos with three daemons on one folder: their database is restarted, cut off and slow as well; takes PostgreSQL.
test-cluster-chaos: $(VENV)/.dev
	CHAOS_MINUTES=$${CHAOS_MINUTES:-4} $(BIN)/python -m pytest -m 'chaos and cluster' tests/chaos

# S3 servers and programs of other makers, in a minute; s3rver comes from npm into a cache. Rewrites docs/compatibility.md
# where it differs.
test-compat: $(VENV)/.compat
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m compat --numprocesses 3 --dist loadfile tests/compat

# One daemon with random load and random faults: what is lost, what grows? Its curves go to soak.svg. FSYNC_MS=n: each fsync
# takes so much longer.
soak: MINUTES ?= 30
soak: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m chaos.soak --minutes $(MINUTES) $(if $(FSYNC_MS),--slow-fsync-ms $(FSYNC_MS))

# Builds the Debian package and tries it in a container with a systemd of its own; CONTRIBUTING.md says what it takes.
# RELEASE=trixie builds and tries it on that Debian; without it, on the host's.
test-system: $(VENV)/.dev
	SYSTEM_TESTS_RELEASE=$(RELEASE) $(BIN)/python -m pytest -m system tests/system

# dist/s3spool_VERSION_ARCH.deb; CONTRIBUTING.md says what it takes.
deb:
	packaging/build-deb

# sdist, wheel and Debian package in dist/.
dist: $(VENV)/.dev deb
	$(BIN)/pip install --quiet --group dist
	$(BIN)/python -m build --outdir dist

# The exact dependencies that the package carries, anew.
lock:
	$(MAKE) -C packaging lock

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# systemd-python has no wheel: it is installed only where it can be built.
$(VENV)/.demo: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --upgrade 'pip >= 25.1' # knows dependency groups
	$(BIN)/pip install --quiet --editable '.[demo,http,top]'
	@if ! pkg-config --exists libsystemd 2>/dev/null || ! $(BIN)/pip install --quiet --editable '.[systemd]'; then \
	echo "systemd-python cannot be built here (it takes gcc, pkg-config, libsystemd-dev, python3-dev):"; \
	echo "going on without the extra 'systemd', which only a service needs (native journal fields)"; fi
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.demo
	$(BIN)/pip install --quiet --group test --group lint --group types
	touch $@

$(VENV)/.compat: pyproject.toml | $(VENV)/.dev
	@if $(BIN)/pip install --quiet --group compat; then touch $@; else \
	echo "moto or rclone cannot be installed here: their columns of docs/compatibility.md are skipped"; fi

$(VENV)/.bench: pyproject.toml | $(VENV)/.dev
	$(BIN)/pip install --quiet --group bench
	touch $@

clean:
	rm -rf $(VENV) build dist
