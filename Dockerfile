# lockstepd and lockstep in a small image. docs/packaging.md says how it is run.
#   docker build -t lockstep .
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p lockstepd -p lockstep

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/lockstep --create-home --shell /usr/sbin/nologin lockstep
COPY --from=build /src/target/release/lockstepd /src/target/release/lockstep /usr/local/bin/
USER lockstep
VOLUME /var/lib/lockstep
# Loopback inside the container: off it the daemon starts only with TLS and principals (LOCKSTEP_CONFIG), and then with LOCKSTEP_LISTEN=0.0.0.0:7117.
ENV LOCKSTEP_DATA_DIR=/var/lib/lockstep LOCKSTEP_LOG_FORMAT=json
EXPOSE 7117
STOPSIGNAL SIGTERM
ENTRYPOINT ["lockstepd"]
