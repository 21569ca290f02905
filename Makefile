# make demo     a whole cluster on this machine, and what happens when a host dies
# make test     what fits in 25 minutes; the same as CI (.ci/run)
# make verify   formatting and lints; never writes to the tree
# make fix      writes what verify would complain about
# make proof    the long runs; SEED=, MINUTES=, FAULTS=, MODE= and MEMBERS= steer the nemesis (docs/proof/nemesis.md)
# make bench    figures: release build, five runs for each fault
# make install  binary, units, example configuration, man pages and completion (DESTDIR, PREFIX)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
DESTDIR ?=
ARGS ?=
# rustup's own directory, for shells that haven't read its environment.
export PATH := $(HOME)/.cargo/bin:$(PATH)
# One profile and one set of flags for lints and tests: nothing is compiled twice.
CARGO_FLAGS := --locked

.PHONY: help
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

.PHONY: demo
demo: release
	@exec target/release/matriarch demo $(ARGS)

.PHONY: release
release:
	@deploy/scripts/prepare.sh demo
	cargo build --release $(CARGO_FLAGS)

.PHONY: test
test:
	@deploy/scripts/prepare.sh test
	@deploy/scripts/drivers.sh || echo "test: drivers that are missing are passed over; all others run"
	@$(MAKE) --no-print-directory verify
	@deploy/scripts/test.sh $(CARGO_FLAGS)

.PHONY: verify
verify:
	cargo fmt --check
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings

.PHONY: fix
fix:
	cargo clippy --fix --allow-dirty --allow-staged --all-targets
	cargo fmt

.PHONY: proof
proof:
	@deploy/scripts/prepare.sh test
	@deploy/scripts/postgresql-versions.sh || echo "proof: tests on versions of PostgreSQL that are missing are passed over; all others run"
	@deploy/scripts/patroni.sh || echo "proof: without Patroni and etcd the test that takes its cluster over is passed over; all others run"
	@deploy/scripts/s3-server.sh || echo "proof: without an S3 server the test of backups on one is passed over; all others run"
	@deploy/scripts/previous.sh || echo "proof: without an older version, tests of two versions side by side are passed over; all others run"
	@deploy/scripts/test.sh --ignored $(CARGO_FLAGS)

.PHONY: bench
bench: release
	@deploy/scripts/bench.sh

.PHONY: install
install:
	@test -x target/release/matriarch || { echo "make install: build first: make release"; exit 2; }
	install -D -m 0755 target/release/matriarch $(DESTDIR)$(PREFIX)/bin/matriarch
	install -d -m 0755 $(DESTDIR)/etc/systemd/system $(DESTDIR)/etc/matriarch
	install -m 0644 deploy/systemd/*.service deploy/systemd/*.slice $(DESTDIR)/etc/systemd/system/
	sed -i 's|/usr/local/bin/matriarch|$(PREFIX)/bin/matriarch|' $(DESTDIR)/etc/systemd/system/matriarch-*.service
	install -m 0644 deploy/matriarch.toml.example $(DESTDIR)/etc/matriarch/
	install -d -m 0755 $(addprefix $(DESTDIR)$(PREFIX)/share/,man/man1 bash-completion/completions zsh/site-functions fish/vendor_completions.d)
	target/release/matriarch man --dir $(DESTDIR)$(PREFIX)/share/man/man1
	target/release/matriarch completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/matriarch
	target/release/matriarch completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_matriarch
	target/release/matriarch completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/matriarch.fish
