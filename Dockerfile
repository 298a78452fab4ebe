# pushcast as a small image: docker build --tag pushcast .
# It can use TLS and SASL for Kafka (feature `tls`), runs as an unprivileged user and needs a file system for
# the embedded store only (/var/lib/pushcast).

FROM rust:1.95-trixie AS build
WORKDIR /src

# First the dependencies, OpenSSL and librdkafka among them: this layer takes minutes, and is built again only
# when a manifest or Cargo.lock changes. Cargo needs the crates of the workspace, so it gets empty ones.
COPY Cargo.toml Cargo.lock ./
COPY crates/backoff/Cargo.toml crates/backoff/
COPY crates/consumer/Cargo.toml crates/consumer/
COPY crates/sandbox/Cargo.toml crates/sandbox/
RUN mkdir -p src benches crates/backoff/src crates/consumer/src crates/consumer/benches crates/sandbox/src \
    && echo 'fn main() {}' \
        | tee src/main.rs benches/broadcast.rs benches/store.rs crates/consumer/benches/runtime.rs \
    && touch src/lib.rs crates/backoff/src/lib.rs crates/consumer/src/lib.rs crates/sandbox/src/lib.rs \
    && cargo build --release --locked --features tls

# Then pushcast. Files older than the empty ones would look unchanged to Cargo: hence the touch.
COPY crates crates
COPY src src
COPY config config
COPY schemas schemas
RUN touch src/main.rs src/lib.rs crates/*/src/lib.rs \
    && cargo build --release --locked --features tls --bin pushcast

FROM debian:trixie-slim

# The certificate authorities of Expo and Google; and curl for the health check.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/pushcast --create-home pushcast

COPY --from=build /src/target/release/pushcast /usr/local/bin/pushcast
COPY LICENSE /usr/share/doc/pushcast/LICENSE

USER 10001:10001
# The folder of the default embedded:pushcast.db.
WORKDIR /var/lib/pushcast

# The admin listener is on 127.0.0.1 unless PUSHCAST__HTTP__ADMIN_LISTEN is set.
EXPOSE 9464

# Liveness, not readiness: some platforms restart an unhealthy container, and a restart does not end an outage
# of Kafka or a provider.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:9464/live"]

# A stop drains, for 45 s at most: docker stop --time 60.
STOPSIGNAL SIGTERM
ENTRYPOINT ["pushcast"]
CMD ["run"]
