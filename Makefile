# `make demo` and `make test` need Python 3.11+ and a package index, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# where images of Python forbid it, as Docker's often do, each of a hundred processes would compile the same modules again
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-page test test-slow faults mutants test-oldest coverage audit lint bench tables docs clean

demo: .venv/installed
	$(BIN)/lora-mnist run --config rare

# docs/demo.html: a base that saw hardly any nines, and its repair with rank 32 and with rank 1, to draw on
demo-page: .venv/installed
	$(BIN)/lora-mnist run --config rare --run runs/demo
	test -d runs/demo/adapters/digit9-r32 || $(BIN)/lora-mnist finetune --run runs/demo --rank 32
	$(BIN)/lora-mnist export --run runs/demo --format html --adapter digit9-r32 --adapter digit9-r1 \
	  --out docs/demo.html --force

# a process a core, each with one thread: threads of several processes would wait for each other
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
  --no-loadscope-reorder

# with SLOW=yes, those of `make test-slow` too: in one session, so that no process waits twice for the last test
test: .venv/installed-test lint
	$(PYTEST) $(if $(SLOW),,-m 'not slow')

# what trains networks of the full size: the README and the commands page as they stand, the README's claims on MNIST
test-slow: .venv/installed-test
	$(PYTEST) -m slow

# every attack of docs/trust.md, of which `make test` tries a few; writes its table; 14 minutes on two cores, with
# FAULTS=30 for no more than about 30 of each, as LORA_MNIST_FAULTS=30 makes it for `make test`
faults: .venv/installed-test
	LORA_MNIST_FAULTS=$(or $(FAULTS),all) $(BIN)/python -m pytest tests/faults

# small changes of the code that no test notices: hours for all of them, SAMPLE=300 for so many at random
mutants: .venv/installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	$(BIN)/python benchmarks/mutants.py $(if $(SAMPLE),--sample $(SAMPLE))

# the suite with the oldest versions that pyproject.toml allows, in an environment of its own; with
# OLDEST_BUT="torch torchvision" those two, which are large, are the ones of constraints.txt
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python tests/oldest.py $(OLDEST_BUT) > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt torch
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable '.[test]'
	.venv-oldest/bin/python -m pytest

# lines and branches of the package that the suite runs, in this process and in those that it starts
coverage: .venv/installed-test
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

# what is installed against the known vulnerabilities, which a service on the network tells; reasons for exceptions go here
AUDIT_EXCEPTIONS :=
audit: .venv/installed-test
	$(BIN)/python -m pip install --quiet --editable '.[audit]'
	$(BIN)/python -m pip list --format freeze --exclude-editable | sed 's/+.*//' > .venv/audited.txt
	$(BIN)/pip-audit --requirement .venv/audited.txt --disable-pip --no-deps --strict --progress-spinner off \
	  $(addprefix --ignore-vuln ,$(AUDIT_EXCEPTIONS)) || { echo "Not passed: there is a vulnerability above, or the data \
	on one could not be reached ('could not be audited'), and then nothing is known of any."; exit 1; }

# every claim of speed, on MNIST in data/ or LORA_MNIST_DATA; half an hour on two cores
bench: .venv/installed-test
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/models.py --threads 1
	$(BIN)/python benchmarks/commands.py
	$(BIN)/python benchmarks/switches.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/play.py
	$(MAKE) demo-page && $(BIN)/python benchmarks/page.py docs/demo.html --run runs/demo --adapter digit9-r1
	$(BIN)/python benchmarks/drawing.py
	for part in step speed equal grow grid; do $(BIN)/python benchmarks/sweep.py $$part || exit 1; done

# every table over seeds of README and docs/, on MNIST in data/ or LORA_MNIST_DATA; it takes hours, what is there is kept
tables: .venv/installed-test
	benchmarks/tables.sh

# README, docs/ and the docstrings as a site in build/site, without a network; a link that leads nowhere is an error
docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	rm -rf build/docs-source && mkdir -p build/docs-source
	cp --parents --recursive *.md LICENSE docs configs benchmarks tests lora_mnist build/docs-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPY_NUM_WORKERS=auto $(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch goes first and alone, so that a build for this machine, once chosen, is kept for everything after it
.venv/torch: .venv/bin/python constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	touch $@

.venv/installed: .venv/torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-oldest runs build mutants .coverage .pytest_cache .ruff_cache
