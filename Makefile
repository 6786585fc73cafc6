PYTHON ?= python3
PROFILE ?= quick
COHORT ?=
SEED ?= 0
ONLY ?=
MARKED ?= not slow
BIN := .venv/bin

.PHONY: replicate test test-all reference study bench peers lab pages

replicate: .venv/ready
	@$(BIN)/srlib run --profile "$(PROFILE)" $(if $(COHORT),--cohort "$(COHORT)") --seed "$(SEED)"

test: .venv/ready
	@$(BIN)/ruff check srlib tests notebooks benchmarks recipes
	@$(BIN)/ruff format --check -q srlib tests notebooks benchmarks recipes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "$(MARKED)"

# also the wheel, browsers, fuzz and kills
test-all: MARKED =
test-all: test

# results/, with three seeds: hours. ONLY=published adds what the authors' files give
reference: .venv/ready
	@$(BIN)/python recipes/reference.py $(ONLY)

# results/study, the evidence for csv/claims.csv: hours; says how many first. ONLY="recnn" these alone
study: .venv/ready
	@$(BIN)/python recipes/study.py $(ONLY)

# ONLY="ssim enhance" runs these alone; benchmarks/README.md says what each is
bench: .venv/ready
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python benchmarks/run.py $(ONLY)

# other people's tools beside ours; ONLY="robust spline" measures these alone
peers: .venv/ready
	@$(BIN)/python benchmarks/peers_table.py $(ONLY)
	@$(BIN)/python benchmarks/peers_table.py $(ONLY) --scans syn08 --tasks thick_1x1x3 gaussian_x2 --middle 112

lab: .venv/ready
	@$(BIN)/jupyter lab notebooks

# the tables of README.md and results/README.md, from results/
pages: .venv/ready
	@$(BIN)/python recipes/pages.py

# Rebuilt only when the pins change. A GPU user removes the torch pin: see README.
.venv/ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python >= 3.11 is needed, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11")'
	@echo "setting up .venv (some minutes, once)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch .venv/ready
