# The two commands a newcomer needs: `make demo` and `make test`. Both install what they lack.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# The scripts look for what was built beside the source, whatever the user's own setting.
export CARGO_TARGET_DIR := $(CURDIR)/target

.PHONY: help demo demo-sidecar demo-envoy test quick wasm browser dashboard parity bench bench-core bench-flow budgets fmt reference clean

help: ## this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

# Some shells export HOST, the machine's name: only what is written on the command line counts.
ifneq ($(origin HOST),command line)
HOST := sidecar
endif

demo: demo-$(HOST) ## a small shop, one real sidecar before each service (HOST=envoy: Envoy with the filter), its traces
	@target/quick/throughline-demo --host $(HOST) $(ARGS)

demo-sidecar:
	@scripts/setup demo
	@cargo build --profile quick -p throughline-proxy -p throughline-flow -p throughline-demo

demo-envoy:
	@scripts/setup demo-envoy
	@$(MAKE) --no-print-directory wasm
	@cargo build --profile quick -p throughline-flow -p throughline-demo

demo-%:
	@echo 'HOST=$*: want sidecar or envoy' >&2; exit 2

test: ## everything that CI checks: lints, licences, unit tests, fuzz smoke, scenarios, the demo
	@scripts/setup test
	@scripts/test

quick: ## lints and unit tests only, for the minutes between two edits
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@cargo test --workspace --lib --bins

wasm: ## the filter for Envoy: target/wasm/throughline.wasm
	@scripts/setup wasm
	@scripts/wasm

dashboard: ## the dashboard: flow/ui/dist, which is committed
	@cd flow/ui && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && npm run --silent types && npm run --silent build

browser: ## the library for pages: browser/dist, which is committed
	@cd browser && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && npm run --silent build

parity: ## the scenarios against real Envoy with the filter, and both hosts' spans against each other
	@scripts/setup test
	@scripts/wasm
	@cargo build -q --profile quick -p throughline-proxy
	@scripts/parity

bench: ## the sidecar and the filter beside their peers on this machine: docs/bench.md and its plots
	@scripts/setup bench
	@cargo build --release -p throughline-proxy
	@$(MAKE) --no-print-directory wasm
	@cargo build --release -p throughline-benches --bin throughline-bench
	@target/release/throughline-bench side-by-side $(or $(ARGS),--write)

budgets: ## instructions of core, and sizes, against benches/budgets.toml
	@scripts/setup bench
	@scripts/budgets $(ARGS)

bench-core: ## what an exchange and an edited event cost in core: time and allocations
	@scripts/setup demo
	@cargo run -q --release -p throughline-benches

bench-flow: ## what a span costs the flow server: within its process (ARGS="spans runs"), and over loopback with clients looking on
	@scripts/setup demo
	@cargo bench -q -p throughline-flow --bench ingest -- $(ARGS)
	@cargo bench -q -p throughline-flow --bench numbers
	@cargo build -q --release -p throughline-flow
	@cargo bench -q -p throughline-flow --bench loopback

fmt: ## format the code
	@cargo fmt --all

reference: ## write docs/settings.md, docs/metrics.md and the chart's schema from their tables
	@cargo run -q -p throughline-proxy -- --print-reference > docs/settings.md
	@cargo run -q -p throughline-proxy -- --print-metrics > docs/metrics.md
	@cargo run -q -p throughline-deploy > deploy/chart/throughline/values.schema.json
	@cargo run -q -p throughline-flow -- --print-reference > target/flow-settings.md
	@sed -i '/^## Listeners/,$$d' docs/flow.md && sed -n '/^## Listeners/,$$p' target/flow-settings.md >> docs/flow.md

clean: ## remove what was built
	@cargo clean
