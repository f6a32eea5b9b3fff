# What developers and CI run. `make` alone lists the targets.
#
# Each target installs the Debian packages it needs if they are missing, which takes root.
# CARGO_TARGET_DIR is honoured. Recipes are bash scripts of one piece.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Where root's tools and rustup's are, should the caller's PATH lack them.
export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin

# Every test binary, as cargo finds them. Tests that compare with recordings of a real kube-proxy are
# those of `conformance`, and in the other binaries those whose path says `recorded`: they have a
# target of their own. Those of `vm` run in a kernel of their own.
TESTS := $(filter-out conformance vm,$(patsubst tests/%/main.rs,%,$(wildcard tests/*/main.rs)))

# Where these recordings are.
FERRULE_SHARED ?= ../shared

# Further arguments, as in `make demo ARGS=--help` or `make test ARGS=affinity`.
ARGS ?=

# Which Debian's tools test-tools takes: one later than this machine's.
SUITE ?= trixie

# How long each fuzz target runs.
FUZZ_SECONDS ?= 60

IMAGE ?= ferrule:dev
# Arguments for the image build, such as `--build-arg BASE=localhost/base`: another base (see Dockerfile).
IMAGE_ARGS ?=

# Programs (or files) and the packages they come from.
COMPILER := cc=gcc /usr/include/stdlib.h=libc6-dev
KERNEL_TOOLS := ip=iproute2 iptables-legacy=iptables iptables-nft=iptables modprobe=kmod nft=nftables

# The kernel that has IPVS, and the programs that go with it.
VM_TOOLS := linux.uml=user-mode-linux ipvsadm=ipvsadm ipset=ipset

# What runs a kernel that has nf_tables as well: Debian's, of this suite. It is kept in the target directory.
EMULATOR := qemu-system-x86_64=qemu-system-x86 /usr/share/doc/busybox-static=busybox-static cpio=cpio
KERNEL_SUITE ?= bookworm

# needs program=package...: installs what is missing.
define needs
needs() {
  local pair program missing=()
  for pair in "$$@"; do
    program=$${pair%%=*}
    command -v "$$program" >/dev/null || [[ $$program == /* && -e $$program ]] || missing+=("$${pair#*=}")
  done
  [[ $${#missing[@]} -gt 0 ]] || return 0
  if ! command -v apt-get >/dev/null; then
    echo "make $@: please install what Debian calls: $${missing[*]}" >&2; return 1
  elif [[ $$(id -u) != 0 ]]; then
    echo "make $@: as root, run: apt-get install $${missing[*]}" >&2; return 1
  fi
  echo "make $@: installing $${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update </dev/null
  apt-get -qq install -y --no-install-recommends "$${missing[@]}" </dev/null >/dev/null
}
# kept NAME: a folder of that name in cargo's own, which is marked as one of things that can be made again. Cargo
# marks it only if it has made it.
kept() {
  local target="$${CARGO_TARGET_DIR:-target}"
  mkdir -p "$$target"
  [[ -e $$target/CACHEDIR.TAG ]] || echo 'Signature: 8a477f597d28d172789f06886806bc55' >"$$target/CACHEDIR.TAG"
  echo "$$target/$$1"
}
if ! command -v cargo >/dev/null; then
  echo "make $@: cargo is not in PATH: install Rust (the version is in Cargo.toml)" >&2; exit 1
fi
endef

# tests ARGUMENTS... [, ARGUMENTS...]: cargo test once or more, then one line with what ran. A test
# that was skipped is a failure, and so is one of the names in $wanted that no test has.
define tests
tests() {
  local status=0 log name arguments=(); log=$$(mktemp)
  while [[ $$# -gt 0 ]]; do
    arguments=()
    while [[ $$# -gt 0 && $$1 != , ]]; do arguments+=("$$1"); shift; done
    [[ $$# == 0 ]] || shift
    cargo test --locked --no-fail-fast "$${arguments[@]}" | tee -a "$$log" || status=$$?
  done
  for name in $${wanted:-}; do
    grep -q "^test .*$$name" "$$log" || { echo "make $@: no test that ran is called $$name"; status=1; }
  done
  awk -v failure="$$status" -v filter="$(ARGS)" '
    /^test result: / { runs += 1; passed += $$4; failed += $$6; ignored += $$8 }
    END {
      if (passed == 0) remark = ": NOTHING RAN"
      if (failure > 0 && failed == 0) remark = ": a test binary was not built or did not end by itself"
      if (ignored > 0) remark = ": a skipped test counts as a failure"
      if (filter != "") remark = remark " (only tests that match: " filter ")"
      printf "make $@: %d passed, %d failed, %d skipped, in %d binaries%s\n", passed, failed, ignored, runs, remark
      exit (failure > 0 || ignored > 0 || passed == 0)
    }' "$$log" || status=1
  rm -f "$$log"
  return $$status
}
endef

# From here on, cargo runs what it has built by this.
define runner
export "CARGO_TARGET_$$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER=$(1)"
endef

# In a kernel of its own that has IPVS.
in_vm = $(call runner,tests/vm/boot -m 1024 -t 900)

# The same in an emulated machine whose kernel has nf_tables as well, for so many seconds at most.
define in_emulator
kernel="$$(kept 'kernels/$(KERNEL_SUITE)')"
if [[ ! -e /usr/lib/qemu/virtiofsd ]]; then
  needs /usr/libexec/virtiofsd=virtiofsd
fi
tests/vm/fetch-kernel '$(KERNEL_SUITE)' "$$kernel"
$(call runner,tests/vm/boot-qemu -m 2048 -t $(1) -k $$kernel)
endef

.PHONY: help
help: ## list the targets
	@echo 'ferrule: a drop-in replacement for kube-proxy. Targets:'
	sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-24s%s\n", $$1, $$2 }'

.PHONY: demo
demo: ## watch a proxy at work on real packets, in network namespaces of its own (root)
	@$(needs)
	needs $(COMPILER) $(KERNEL_TOOLS)
	cargo run --locked -- demo $(ARGS)

.PHONY: demo-vm
demo-vm: ## the same for ipvs mode, in a kernel of its own that has IPVS (root, x86-64)
	@$(needs)
	needs $(COMPILER) $(KERNEL_TOOLS) $(VM_TOOLS)
	$(in_vm)
	cargo run --locked -- demo --proxy-mode ipvs $(ARGS)

.PHONY: test
test: ## every test that needs nothing but this checkout and a Linux kernel (root)
	@$(needs)
	$(tests)
	needs $(COMPILER) $(KERNEL_TOOLS)
	tests --lib --bins $(addprefix --test ,$(TESTS)) -- --skip recorded $(ARGS)

.PHONY: conformance
conformance: ## compare the rules in the kernel with recordings of a real kube-proxy (root)
	@$(needs)
	$(tests)
	if [[ ! -d "$(FERRULE_SHARED)/golden" ]]; then
	  echo 'make conformance: no recordings in $(FERRULE_SHARED)/golden: set FERRULE_SHARED to the folder that holds golden/' >&2; exit 1
	fi
	needs $(COMPILER) $(KERNEL_TOOLS) $(VM_TOOLS)
	export FERRULE_SHARED="$$(realpath "$(FERRULE_SHARED)")"
	if [[ -n '$(ARGS)' ]]; then
	  tests --test conformance -- $(ARGS)
	else
	  result=0
	  tests --test conformance -- --skip in_vm:: , $(addprefix --test ,$(TESTS)) -- recorded || result=1
	  $(in_vm)
	  tests --test conformance -- in_vm:: || result=1
	  exit $$result
	fi

.PHONY: test-vm
test-vm: ## test IPVS in a kernel of its own that has it: User-Mode Linux (root, x86-64)
	@$(needs)
	$(tests)
	needs $(COMPILER) $(KERNEL_TOOLS) $(VM_TOOLS)
	$(in_vm)
	tests --test vm -- --skip with_nf_tables:: $(ARGS)

# What test-kernel-brief runs.
BRIEF_NETNS := acceptance::in_nftables_mode::cluster_cidr balancing::in_nftables_mode::clients_stay \
  refusal::in_nftables_mode::no_endpoints_anywhere nftables::what_the_kernel_refuses
BRIEF_VM := with_nf_tables:: acceptance::by_cluster_cidr

# Two at a time, for there are two processors: the more run side by side, the longer each waits.
.PHONY: test-kernel
test-kernel: ## test nftables mode, and ipvs mode with iptables-nft, in Debian's kernel, emulated: an hour (root, x86-64)
	@$(needs)
	$(tests)
	needs $(COMPILER) $(KERNEL_TOOLS) $(VM_TOOLS) $(EMULATOR)
	$(call in_emulator,5400)
	tests --test netns -- --test-threads 2 $(or $(ARGS),nftables:: in_nftables_mode::) , --test vm -- --test-threads 2 $(ARGS)

.PHONY: test-kernel-brief
test-kernel-brief: ## the most telling tests of test-kernel (root, x86-64)
	@$(needs)
	$(tests)
	needs $(COMPILER) $(KERNEL_TOOLS) $(VM_TOOLS) $(EMULATOR)
	$(call in_emulator,1200)
	wanted='$(BRIEF_NETNS) $(BRIEF_VM)'
	tests --test netns -- --test-threads 2 $(BRIEF_NETNS) , --test vm -- --test-threads 2 $(BRIEF_VM)

.PHONY: test-tools
test-tools: ## nftables mode, the nft variant and the demo with tools of a later Debian: SUITE=trixie, sid (root)
	@$(needs)
	$(tests)
	needs $(COMPILER) $(KERNEL_TOOLS) unshare=util-linux dpkg-deb=dpkg
	folder="$$(realpath -m "$$(kept 'debian/$(SUITE)')")"
	tests/debian/fetch '$(SUITE)' "$$folder"
	$(call runner,tests/debian/inside $$folder)
	if [[ -n '$(ARGS)' ]]; then
	  tests --test netns --test demo -- $(ARGS)
	else
	  # Each by itself: one that finds nothing is a failure.
	  result=0
	  for part in nftables:: in_nftables_mode:: nft_ipv; do
	    tests --test netns -- "$$part" || result=1
	  done
	  tests --test demo || result=1
	  exit $$result
	fi

.PHONY: lint
lint: ## formatting, clippy and documentation, warnings denied
	@$(needs)
	needs $(COMPILER)
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items
	echo 'make lint: formatting, clippy and documentation are clean'

.PHONY: chart
chart: ## lint and render the Helm chart, read the PromQL of dashboard and alerts (Helm from PyPI)
	@$(needs)
	needs python3=python3 /usr/share/doc/python3-venv=python3-venv
	tools="$$(kept chart-tools)"
	wanted='helm-python-sdk==0.2.2 promql-parser==0.12.0 pyyaml==6.0.2'
	if [[ "$$(cat "$$tools/installed" 2>/dev/null)" != "$$wanted" ]]; then
	  python3 -m venv --clear "$$tools"
	  "$$tools/bin/pip" install --quiet --disable-pip-version-check $$wanted
	  echo "$$wanted" >"$$tools/installed"
	fi
	"$$tools/bin/python" tests/chart/check.py
	echo 'make chart: the chart renders to what is expected'

.PHONY: deny
deny: ## check licences, duplicates and advisories of dependencies (compiles cargo-deny: minutes)
	@$(needs)
	needs $(COMPILER)
	cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny --locked check licenses bans sources
	cargo deny --locked check advisories || echo 'make deny: advisories are a matter to look into, not a failure'
	echo 'make deny: licences, duplicates and sources are as deny.toml wants them'

.PHONY: tools
tools: ## only install what test, test-vm, test-kernel, conformance and demo need (root)
	@$(needs)
	needs $(COMPILER) $(KERNEL_TOOLS) $(VM_TOOLS) $(EMULATOR)
	$(call in_emulator,60)

.PHONY: bench
bench: ## time its parts, and the program at scale beside the bare tools (root); ARGS=scale for that alone
	@$(needs)
	needs $(COMPILER) $(KERNEL_TOOLS) setpriv=util-linux
	if [[ ' $(ARGS) ' != *' scale '* ]]; then
	  cargo bench --locked $(addprefix --bench ,$(basename $(notdir $(wildcard benches/*.rs)))) -- $(ARGS)
	  echo 'make bench: criterion keeps its figures under criterion/ in the target directory'
	fi
	cargo bench --locked --bench scale -- $(ARGS)

.PHONY: bench-test
bench-test: ## see that the benches run at all: a little of each part, nftables mode with 100 Services (root)
	@$(needs)
	needs $(COMPILER) $(KERNEL_TOOLS) setpriv=util-linux
	cargo bench --locked --profile dev $(addprefix --bench ,$(basename $(notdir $(wildcard benches/*.rs)))) -- --test
	cargo bench --locked --profile dev --bench scale -- --test nftables
	echo 'make bench-test: the benches run'

.PHONY: bench-vm
bench-vm: ## time ipvs mode beside the bare tools, in a kernel of its own that has IPVS (root, x86-64)
	@$(needs)
	needs $(COMPILER) $(KERNEL_TOOLS) $(VM_TOOLS) setpriv=util-linux
	$(in_vm)
	cargo bench --locked --bench ipvs -- $(ARGS)

.PHONY: fuzz
fuzz: ## search for inputs that break parsers or the slice merge (compiles cargo-fuzz: minutes); ARGS names targets
	@$(needs)
	needs $(COMPILER) c++=g++
	cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	# There is no unsafe code for a sanitizer to watch, and without one a stable compiler will do.
	folder="$$(kept fuzz)" targets='$(ARGS)' broken=()
	build=(--fuzz-dir tests/fuzz --target-dir "$$folder" --sanitizer none)
	cargo fuzz build "$${build[@]}"
	for target in $${targets:-$$(cargo fuzz list --fuzz-dir tests/fuzz)}; do
	  printf '\n=== %s\n' "$$target"
	  mkdir -p "$$folder/corpus/$$target"
	  nice cargo fuzz run "$${build[@]}" "$$target" "$$folder/corpus/$$target" "tests/regress/$$target" -- \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=10 -verbosity=0 -print_final_stats=1 || broken+=("$$target")
	done
	if [[ $${#broken[@]} -gt 0 ]]; then
	  echo "make $@: found something in $${broken[*]}: give the input under tests/fuzz/artifacts/ a name in tests/regress/, then mend" >&2
	  exit 1
	fi
	echo 'make $@: nothing found'

.PHONY: image
image: ## build the container image with docker, podman or buildah
	@$(needs)
	if docker info >/dev/null 2>&1; then
	  docker build -t '$(IMAGE)' $(IMAGE_ARGS) .
	  size=$$(docker image ls --format '{{.Size}}' '$(IMAGE)')
	elif command -v podman >/dev/null; then
	  podman build -t '$(IMAGE)' $(IMAGE_ARGS) .
	  size=$$(podman image ls --format '{{.Size}}' '$(IMAGE)')
	else
	  needs buildah=buildah
	  buildah build --isolation chroot -t '$(IMAGE)' $(IMAGE_ARGS) .
	  size=$$(buildah images --format '{{.Size}}' '$(IMAGE)')
	fi
	echo "make image: built $(IMAGE), $$size unpacked"

# Where the base of image-local is kept: what is in it changes with Debian, not with ferrule.
LOCAL_BASE := localhost/ferrule-base
LOCAL_PACKAGES := bash,ca-certificates,gcc,iproute2,ipset,iptables,kmod,libc6-dev,nftables

.PHONY: image-local
image-local: ## build it with buildah, without a daemon or a registry: Debian's packages, this Rust (root)
	@$(needs)
	needs buildah=buildah mmdebstrap=mmdebstrap
	if ! buildah inspect '$(LOCAL_BASE)' >/dev/null 2>&1; then
	  scratch=$$(mktemp -d)
	  trap 'rm -rf "$$scratch"' EXIT
	  suite=$$(. /etc/os-release; [[ $$ID == debian ]] && echo "$$VERSION_CODENAME" || echo bookworm)
	  mmdebstrap --quiet --variant=essential --include='$(LOCAL_PACKAGES)' "$$suite" "$$scratch/base.tar"
	  base=$$(buildah from scratch)
	  buildah add --quiet "$$base" "$$scratch/base.tar" / >/dev/null
	  buildah config --env PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin --env CARGO_HOME=/opt/cargo "$$base"
	  buildah commit --quiet --rm "$$base" '$(LOCAL_BASE)' >/dev/null
	fi
	mkdir -p "$${CARGO_HOME:-$$HOME/.cargo}/registry"
	buildah build --isolation chroot --layers -t '$(IMAGE)' \
	  --build-arg BASE='$(LOCAL_BASE)' --build-arg BUILD_BASE='$(LOCAL_BASE)' \
	  --volume "$$(rustc --print sysroot):/opt/rust:ro" \
	  --volume "$${CARGO_HOME:-$$HOME/.cargo}/registry:/opt/cargo/registry" \
	  --volume /etc/ssl/certs:/etc/ssl/certs:ro $(IMAGE_ARGS) .
	echo "make image-local: built $(IMAGE), $$(buildah images --format '{{.Size}}' '$(IMAGE)') unpacked"

.PHONY: image-test
image-test: ## run what image-local built: the demo, both variants of iptables, least privilege (root)
	@$(needs)
	needs buildah=buildah $(KERNEL_TOOLS) setpriv=util-linux
	container=$$(buildah from '$(IMAGE)')
	trap 'buildah rm "$$container" >/dev/null' EXIT
	unshare --mount --net --pid --fork --kill-child deploy/image/test "$$(buildah mount "$$container")"
	echo 'make image-test: $(IMAGE) does what its manifests need'
