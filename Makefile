# What people and CI call. `make setup` is run by the others when it is needed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.setup-done
N_WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); \
	[ $$n -gt 4 ] && n=4; echo $$n)
GL_PACKAGES := libegl1 libgl1 libosmesa6

# One thread a process, and waiting threads sleep: several processes share the cores.
QUIET_THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0

.DELETE_ON_ERROR:
.PHONY: setup gl demo test check format bench bench-lerobot lock

setup: $(DONE)

$(DONE): requirements.lock pyproject.toml
	@test -x $(BIN)/python || command -v $(PYTHON) >/dev/null || \
		{ echo "error: no $(PYTHON); install it, or: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -e .
	@$(MAKE) --no-print-directory gl
	$(BIN)/python -m embodied.weights
	@touch $(DONE)

# Off-screen rendering needs EGL or OSMesa from the system.
gl:
	@missing=; for lib in libEGL.so.1 libGL.so.1 libOSMesa.so; do \
		ldconfig -p 2>/dev/null | grep -q "$$lib" || missing="$$missing $$lib"; done; \
	if [ "$$(uname)" = Linux ] && [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
			apt-get install -qq -y --no-install-recommends $(GL_PACKAGES) >/dev/null; \
		then echo "installed $(GL_PACKAGES)"; \
		else echo "rendering lacks$$missing; install them as root: apt-get install $(GL_PACKAGES)"; \
		fi; fi

demo: setup
	$(BIN)/embodied run "open the drawer" --env metaworld/drawer-open-v3 --output_dir outputs/demo

test: setup
	$(QUIET_THREADS) $(BIN)/python -m pytest -q -n $(N_WORKERS) --dist worksteal $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Speeds that need nobody else; each has flags of its own: --help.
bench: setup
	$(BIN)/python scripts/bench_finetune.py
	$(BIN)/python scripts/bench_rollout.py

# Beside lerobot, which is installed into an environment of its own at the first run.
bench-lerobot: setup
	scripts/bench_lerobot_eval.sh $(ARGS)

# After changing .venv on purpose: write its versions down. CUDA's packages exist for Linux only.
lock:
	@{ echo "# The versions our figures were made with, Python 3.11. Written by: make lock"; \
	$(BIN)/python -m pip freeze --all --exclude embodied-planner --exclude pip | \
		sed -E '/^(nvidia-|cuda-|triton=)/ s/$$/ ; sys_platform == "linux"/'; } > requirements.lock
	@if [ -e $(DONE) ]; then touch $(DONE); fi
