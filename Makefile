# What people and CI type. Both say the same words.

# The version that CI builds when there is none on the PATH.
DENY_VERSION := 0.20.2
DENY := $(or $(shell command -v cargo-deny 2>/dev/null),target/tools/bin/cargo-deny)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show these words
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{ printf "  make %-13s %s\n", $$1, $$2 }'

.PHONY: demo
demo: ## See it work: everything in one process, nothing to install
	cargo build --release
	./target/release/pushcast demo

.PHONY: build
build: ## Build the release binary
	cargo build --release

# The stories about the whole process mostly wait: for a session to end, for a provider to be back. Eight at a time.
.PHONY: test
test: ## Run the tests, those on real servers too
	scripts/services up
	@trap 'scripts/services down' EXIT; trap 'exit 130' INT TERM; RUST_TEST_THREADS=8 cargo test --workspace

.PHONY: soak
soak: ## Kill processes and brokers for a long time; ROUNDS=30, REAL_SEED=… repeats the moments
	ROUNDS=$(or $(ROUNDS),30) cargo test --test behaviour crash:: -- --nocapture --test-threads=1
	scripts/services up
	@trap 'scripts/services down' EXIT; trap 'exit 130' INT TERM; \
		ROUNDS=$(or $(ROUNDS),30) cargo test --test real -- --ignored --nocapture --test-threads=1 && \
		cargo test --test cql -- --ignored --nocapture

.PHONY: services
services: ## Start the real servers that tests/real and tests/cql want
	scripts/services up

.PHONY: services-down
services-down: ## End them
	scripts/services down

.PHONY: check
check: fmt clippy tls doc deny test-dates ## Check what `make test` does not

.PHONY: test-dates
test-dates: ## Run the tests of contract, domain and recurrence under moved clocks
	scripts/test-dates

.PHONY: fmt
fmt: ## Check the format
	cargo fmt --all --check

.PHONY: clippy
clippy: ## Check with clippy; every warning is an error
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: tls
tls: ## Check that the build with Kafka over TLS and SASL compiles
	@command -v perl >/dev/null || { echo "error: OpenSSL's build needs perl: install it (apt-get install perl) and call again" >&2; exit 1; }
	cargo check --locked --features tls

.PHONY: doc
doc: ## Check that the documentation builds, links included
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --lib

.PHONY: deny
deny: $(DENY) ## Check licences, sources and bans of the dependencies
	$(DENY) check bans licenses sources

# A debug build: it takes half the time of a release build and checks us in seconds all the same.
target/tools/bin/cargo-deny:
	cargo install cargo-deny --locked --version $(DENY_VERSION) --root target/tools --debug
