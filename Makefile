# The commands of developers and CI: `make help` lists them.

# The version of cargo-deny that is built when there is none on the PATH.
DENY_VERSION := 0.20.2
DENY := $(or $(shell command -v cargo-deny 2>/dev/null),target/tools/bin/cargo-deny)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' \
		| awk -F'\t' '{ printf "  make %-13s %s\n", $$1, $$2 }'

.PHONY: demo
demo: ## Run a demonstration: everything in one process, nothing to install
	cargo build --release
	./target/release/pushcast demo

.PHONY: build
build: ## Build the release binary
	cargo build --release

# The end-to-end tests mostly wait, for a session to end or an outage to be over: eight run at a time.
.PHONY: test
test: ## Run all tests, with those on real servers
	scripts/services up
	@trap 'scripts/services down' EXIT; trap 'exit 130' INT TERM; RUST_TEST_THREADS=8 cargo test --workspace

.PHONY: soak
soak: ## Kill processes and brokers for a long time (ROUNDS=30; REAL_SEED=… repeats the timing of a run)
	ROUNDS=$(or $(ROUNDS),30) cargo test --test behaviour crash:: -- --nocapture --test-threads=1
	scripts/services up
	@trap 'scripts/services down' EXIT; trap 'exit 130' INT TERM; \
		ROUNDS=$(or $(ROUNDS),30) cargo test --test real -- --ignored --nocapture --test-threads=1 && \
		cargo test --test cql -- --ignored --nocapture

.PHONY: services
services: ## Start the real servers that tests/real and tests/cql need
	scripts/services up

.PHONY: services-down
services-down: ## Stop these servers
	scripts/services down

.PHONY: check
check: fmt clippy tls doc deny test-dates ## Run every check that `make test` does not

.PHONY: test-dates
test-dates: ## Run the unit tests and the store contract under moved clocks
	scripts/test-dates

.PHONY: fmt
fmt: ## Check the formatting
	cargo fmt --all --check

.PHONY: clippy
clippy: ## Run clippy; every warning is an error
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: tls
tls: ## Check that the build with Kafka over TLS and SASL compiles
	@command -v perl >/dev/null || { \
		echo "error: OpenSSL's build needs perl: install it (apt-get install perl) and try again" >&2; exit 1; }
	cargo check --locked --features tls

.PHONY: doc
doc: ## Check that the documentation builds, links included
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --lib

.PHONY: deny
deny: $(DENY) ## Check the licences and sources of the dependencies
	$(DENY) check bans licenses sources

# A debug build takes half the time of a release build, and the check takes seconds all the same.
target/tools/bin/cargo-deny:
	cargo install cargo-deny --locked --version $(DENY_VERSION) --root target/tools --debug
