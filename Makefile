# Two commands do everything on a machine with python3 (3.11 or newer), make and a network:
#   make demo    install, fetch the default model, find the circuit behind the IOI task, look at the model all round for a
#                minute more, print where the pages are
#   make test    install with the development tools, then lint, types, tests
# Both may be run again; what is already there is not made twice. Tests use no network: set-up fetches what they need.

PYTHON ?= python3
VENV := .venv
# Two processes for two cores; make test PYTEST="-x tests/model" runs a part.
PYTEST ?= -n 2
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test bench model chromium clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -4
	@echo "  make bench   measure speed and memory beside other tools, in environments of their own"
	@echo "  make clean   remove the virtual environment"

demo: model
	$(BIN)/caseback circuit ioi
	$(BIN)/caseback audit --minutes 1

test: model chromium $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST)

bench: model $(VENV)/.dev
	$(BIN)/python -m bench

# Installed anew when the metadata or the pins change. The constraint decides which torch comes, whatever asks for it first.
$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "caseback needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(INSTALL) -e '.[dev]'
	@touch $@

# The stamp holds the folder the default model was put into, which may have been deleted since.
model: $(VENV)/.base
	@test -f "$$(cat $(VENV)/.model 2>/dev/null)/manifest.json" || { echo "the default model (fetched once, 93 MB)"; \
		$(BIN)/python -c 'from caseback.model.default import default_folder; print(default_folder())' > $(VENV)/.model.part \
		&& mv $(VENV)/.model.part $(VENV)/.model; }

# Only CI's own machine gets a browser installed; elsewhere the browser tests are skipped, visibly, where there is none.
chromium:
	@if [ "$$CI" = true ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null \
		&& ! command -v chromium > /dev/null && ! command -v chromium-browser > /dev/null && ! command -v google-chrome > /dev/null; \
	then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null; fi

clean:
	rm -rf $(VENV)
