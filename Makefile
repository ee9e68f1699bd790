# make help tells what there is. All set-up is done by the targets themselves (setup/install).

CARGO := setup/cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PREFIX := /usr/local
PROGRAMS := gridctl gridosd gridos-shim gridos-init gridos-criu gridos-pages gridos-mover gridos-ftpd gridos-lab

.PHONY: help build install image test test-kasan lint demo bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 17

build: ## the programs, as a user runs them (target/release)
	setup/install build
	$(CARGO) build --release --workspace --bins

install: ## what was built, to /usr/local/bin; PREFIX=/usr for elsewhere
	@test -x $(TARGET_DIR)/release/gridosd || { echo "nothing is built yet: run make build, as yourself" >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin
	install $(addprefix $(TARGET_DIR)/release/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin
	@# CRIU of our own, where Debian's is too old (setup/install).
	if test -e $(TARGET_DIR)/criu/criu; then \
		install -d $(DESTDIR)$(PREFIX)/lib/gridos/criu/lib && \
		install $(TARGET_DIR)/criu/criu $(DESTDIR)$(PREFIX)/lib/gridos/criu && \
		install $(TARGET_DIR)/criu/lib/* $(DESTDIR)$(PREFIX)/lib/gridos/criu/lib; \
	fi

image: ## an image of a virtual machine that is a node (target/image); images/run.sh boots a grid of them
	setup/install build image
	$(CARGO) build --release --workspace --bins
	images/build

test: ## installs what is missing and runs every test; ONLY=crate runs one crate's
	setup/install build test
	setup/test $(ONLY)

test-kasan: ## the kernel module's tests on a kernel with KASAN, lockdep and kmemleak, which is built once (target/vm/kasan)
	setup/install build kasan
	setup/kasan
	$(CARGO) test --package grid-tests --test kasan -- --ignored --nocapture --test-threads 1

lint: ## formatting, clippy and cargo-deny, as far as they are installed
	setup/install build
	setup/lint

demo: ## a grid of three nodes on this machine renders a picture; one node is killed meanwhile
	setup/install build demo
	$(CARGO) build --release --workspace --bins
	PATH="$(abspath $(TARGET_DIR))/release:$$PATH" setup/demo

bench: ## benchmarks beside the peers that are installed; ONLY=name runs one
	setup/install build bench
	$(CARGO) build --release --workspace --bins
	$(CARGO) bench --package grid-tests $(if $(ONLY),-- $(ONLY))

clean: ## removes what was built
	$(CARGO) clean
