# Ostler: every task has one door. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
RUN_STAMP := .venv/.run-$(shell cksum < lock/run.txt | cut -d' ' -f1)
DEV_STAMP := .venv/.dev-$(shell cksum < lock/dev.txt | cut -d' ' -f1)
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
export PYTHONDONTWRITEBYTECODE ?=

.PHONY: help run test test-long check fmt chaos test-fleet fleet-demo testbed testbed-down bench bench-quick bench-fleet venv dev lock docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.venv/bin/python:
	@echo "==> making .venv"
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Ostler needs Python 3.11 or newer; python3 is $$(python3 -V)"; exit 1; }
	@python3 -m venv .venv || { echo "python3 cannot make a venv here; on Debian: apt-get install python3-venv"; exit 1; }

$(RUN_STAMP): lock/run.txt pyproject.toml hatch_build.py src/ostler/node/keeper/_spawn.c src/ostler/node/sandbox/_enter.c | .venv/bin/python
	@echo "==> installing what Ostler needs (pinned by hash in lock/run.txt)"
	@$(INSTALL) --require-hashes -r lock/run.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@rm -f .venv/.run-*; touch $@

$(DEV_STAMP): lock/dev.txt $(RUN_STAMP)
	@echo "==> installing the tools of development (pinned by hash in lock/dev.txt)"
	@$(INSTALL) --require-hashes -r lock/dev.txt
	@rm -f .venv/.dev-*; touch $@

venv: $(RUN_STAMP)  ## make .venv with everything that running needs
dev: $(DEV_STAMP)   ## the same, with the tools of development

run: $(RUN_STAMP)  ## transcode a video on a node through a coordinator (VIDEO=path for your own)
	@tools/system-packages bubblewrap
	@$(PY) tools/main_job.py $(if $(VIDEO),--video "$$VIDEO")

test: export PYTHONDONTWRITEBYTECODE =
test: $(DEV_STAMP)  ## all tests, with coverage
	@tools/system-packages bubblewrap
	@$(PY) -m pytest -n $${TEST_JOBS:-4} --dist loadgroup --cov --cov-report= -m "not long" $(ARGS)
	@echo "==> coverage"
	@.venv/bin/coverage report --skip-covered --skip-empty
	@echo "==> the pure model is covered whole"
	@.venv/bin/coverage report --include='src/ostler/model/*' --fail-under=100 | tail -n 1

test-long: $(DEV_STAMP)  ## what takes minutes: planted bugs, rollouts on real hosts
	@$(PY) -m pytest -v -n $${TEST_JOBS:-2} --dist loadgroup -m long $(ARGS)

check: $(DEV_STAMP)  ## format, lint, types, import rules, generated docs, lock files
	@echo "==> format";  .venv/bin/ruff format --check --quiet . || { echo "run: make fmt"; exit 1; }
	@echo "==> lint";    .venv/bin/ruff check --quiet .
	@echo "==> types";   .venv/bin/mypy
	@echo "==> imports"; .venv/bin/lint-imports --no-cache | tail -n 12
	@echo "==> docs";    $(PY) tools/reference.py --check

fmt: $(DEV_STAMP)  ## format and mend what can be mended by itself
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

docs: $(DEV_STAMP)  ## write the generated reference pages anew
	@$(PY) tools/reference.py

chaos: $(DEV_STAMP)  ## faults by SEED over JOBS jobs, and the proof that nothing was lost (docs/explanation/reliability.md)
	@tools/system-packages bubblewrap
	@$(PY) -m tests.chaos.run --seed $(or $(SEED),1) --jobs $(or $(JOBS),2000) \
	  --store $(or $(STORE),sqlite) --replicas $(or $(REPLICAS),1) $(ARGS)

test-fleet: $(DEV_STAMP)  ## rollouts on HOSTS real hosts (16), the long tests too; needs root
	@TESTBED_HOSTS=$(or $(HOSTS),16) $(PY) -m pytest -n 0 -v tests/fleet $(ARGS)

fleet-demo: $(DEV_STAMP)  ## the whole story of a fleet on HOSTS real hosts (16; 3 do): install, update, roll back, drift; needs root
	@PYTHONPATH=tests $(PY) -m fleet.demo --hosts $(or $(HOSTS),16)

testbed: $(DEV_STAMP)  ## HOSTS real hosts (systemd, sshd, own addresses) to play with; needs root
	@$(PY) -m tests.fleet.testbed up --hosts $(or $(HOSTS),4)

testbed-down: $(DEV_STAMP)  ## remove them
	@$(PY) -m tests.fleet.testbed down

bench: $(DEV_STAMP)  ## product and peers in turns: rates, latency, footprint, verdicts (bench/README.md)
	@tools/system-packages bubblewrap
	@$(PY) bench/run.py $(ARGS)

bench-quick: $(DEV_STAMP)  ## the same with few jobs and the peers that matter most, in three minutes
	@tools/system-packages bubblewrap
	@$(PY) bench/run.py --quick $(ARGS)

bench-fleet: $(DEV_STAMP)  ## rollouts onto HOSTS real hosts (16) beside Ansible and pyinfra; needs root
	@$(PY) bench/rollouts.py --hosts $(or $(HOSTS),16) $(ARGS)

lock: $(DEV_STAMP)  ## pin the dependencies anew
	@for set in run dev release; do \
	  case $$set in run) extras="--extra demo --extra s3 --extra build --upgrade" ;; \
	    dev) extras="--extra demo --extra s3 --extra build --extra dev --upgrade" ;; release) extras="-c lock/run.txt" ;; esac; \
	  .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-strip-extras --no-emit-index-url --no-header --no-annotate $$extras -o lock/$$set.txt pyproject.toml; done

clean:  ## remove what the targets made (not your data)
	@rm -rf .venv .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis var/demo
