# The image of ferrule: the program, and the programs it runs.
#
#   docker build -t ferrule .
#
# Both bases are arguments, so that any image like Debian's serves, local ones too: `make image-local`
# makes one out of Debian's packages.

# Rust and a C compiler.
ARG BUILD_BASE=rust:1.95-slim-bookworm
# Where the programs besides ferrule come from.
ARG BASE=debian:bookworm-slim

FROM ${BUILD_BASE} AS build
WORKDIR /src
# What `.dockerignore` lets in. The manifest names tests and benches, so cargo wants to see them;
# nothing of them is compiled.
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY examples examples
COPY src src
COPY tests tests
RUN cargo build --release --locked --bin ferrule --target-dir /build

FROM ${BASE} AS programs
# Both variants of iptables; ipset and nft for the other modes; modprobe for kernel modules; `ip` for
# the demo; bash for go-runner. A base that has them needs no network.
RUN set -eu; \
    for program in iptables-nft iptables-legacy nft ipset modprobe ip bash; do \
      command -v "$program" >/dev/null && continue; \
      apt-get -qq update; \
      DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        bash iproute2 ipset iptables kmod nftables; \
      break; \
    done
COPY deploy/image /collect
COPY --from=build /build/release/ferrule /usr/local/bin/ferrule
RUN /collect/collect /image && cp /collect/go-runner /image/go-runner

# Only what is needed: no package manager, no conntrack (ferrule asks the kernel itself).
FROM scratch
COPY --from=programs /image /
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin
ENTRYPOINT ["/usr/local/bin/ferrule"]
