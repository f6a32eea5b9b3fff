# The image of ferrule: the program, and the programs it runs.
#
#   docker build -t ferrule .
#
# Both bases are arguments, so that any Debian-like image serves, local ones too.

# Rust and a C compiler.
ARG BUILD_BASE=rust:1.95-slim-bookworm
# What the image consists of besides ferrule.
ARG BASE=debian:bookworm-slim

FROM ${BUILD_BASE} AS build
WORKDIR /src
# What `.dockerignore` lets in. The manifest names tests and benches, so cargo wants to see them;
# nothing of them is compiled.
COPY . .
RUN cargo build --release --locked --bin ferrule --target-dir /build

FROM ${BASE}
# Both variants of iptables, and modprobe for their kernel modules. A base that has them needs no network.
RUN set -eu; \
    if ! command -v iptables-nft >/dev/null || ! command -v modprobe >/dev/null; then \
      apt-get -qq update; \
      DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends iptables kmod; \
      rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /build/release/ferrule /usr/local/bin/ferrule
# Under this name it answers to whatever starts a kube-proxy.
RUN ln -s ferrule /usr/local/bin/kube-proxy
ENTRYPOINT ["/usr/local/bin/ferrule"]
