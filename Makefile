# keyturn: `make demo` shows the main job for real, `make test` runs all tests.
# Both install what they need and say so. See README.md.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help build deps demo up down test test-slow test-vault vmtest vet fuzz bench clean

export CGO_ENABLED := 0
BIN := bin
PROGRAMS := keyturn keyturnd keyturn-notary keyturn-agent age-plugin-keyturn
PACKAGES := gcc libc6-dev libssl-dev xfsprogs strace softhsm2 libtpm2-pkcs11-1 swtpm swtpm-tools age openssl opensc minisign openssh-client gnupg tpm2-tools tpm2-openssl osslsigncode git ima-evm-utils

VM_PACKAGES := qemu-system-x86 ovmf systemd-boot-efi sbsigntool binutils busybox-static mtools fdisk e2fsprogs
VM_KERNEL := build/vm/kernel
OPENCRYPTOKI := build/opencryptoki

# install installs what is missing of the Debian packages given, with their recommendations or without.
sudo = as=$$([ $$(id -u) = 0 ] || echo sudo)
define install
	@missing=$$(dpkg-query -W -f='$${db:Status-Status} $${Package}\n' $(1) 2>/dev/null | awk '$$1=="installed"{print $$2}' | sort | comm -13 - <(printf '%s\n' $(1) | sort)); \
	if [ -n "$$missing" ]; then echo "installing from Debian:" $$missing; $(sudo); \
	  $$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(2) $$missing >/dev/null; fi
endef

help: ## show this list
	@sed -nE 's/^([a-z-]+):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

deps: ## install what build, demo and test need (Debian)
	$(call install,$(PACKAGES))
	@go mod download

build: ## build all programs into bin/
	@mkdir -p $(BIN)
	@go build -trimpath -o $(BIN)/ $(addprefix ./cmd/,$(PROGRAMS))
	@CGO_ENABLED=1 go build -trimpath -o $(BIN)/ ./cmd/keyturn-token

demo: deps ## the whole story, on real parts, with everything that is refused
	@start=$$(date +%s); $(MAKE) --no-print-directory build && go build -trimpath -o build/dev ./deploy/dev && go build -trimpath -o build/train ./deploy/dev/train && \
	echo "built in $$(( $$(date +%s) - start )) s"
	@build/dev demo --bin $(BIN) --train build/train --dir build/demo

up: deps build ## leave the demo's cluster running and print what to try first
	@go build -trimpath -o build/dev ./deploy/dev && go build -trimpath -o build/train ./deploy/dev/train
	@build/dev up --bin $(BIN) --train build/train --dir build/up

down: ## stop what make up left running
	@build/dev down --dir build/up

test: deps vet ## all tests
	@$(MAKE) -s --no-print-directory $(OPENCRYPTOKI) || echo "the tests of opencryptoki will skip"
	@CGO_ENABLED=1 go test -timeout 20m ./...

test-slow: deps ## the tests that take minutes, and gigabytes of disk
	@KEYTURN_SLOW=1 go test -count=1 -timeout 60m -run 'Sparse64GiB|SealAcross4GiB' -v ./signoff/weights
	@KEYTURN_SLOW=1 CGO_ENABLED=1 go test -count=1 -timeout 90m -run KilledAtEveryStep ./signoff/notary

test-vault: deps ## hsm/vault against a real Vault server, which is built first (minutes)
	@mkdir -p build
	@echo "building a Vault server for the tests"; cd hsm/vault/testserver && go build -trimpath -ldflags='-s -w' -o $(CURDIR)/build/vault-server .
	@CGO_ENABLED=1 KEYTURN_VAULT_SERVER=$(CURDIR)/build/vault-server go test -count=1 ./hsm/vault

vmtest: deps $(VM_KERNEL) ## a node with a measured boot, in qemu: what it proves, and what is refused (minutes)
	$(call install,$(VM_PACKAGES),--no-install-recommends)
	@start=$$(date +%s); $(MAKE) --no-print-directory build && go build -trimpath -o build/dev ./deploy/dev && go build -trimpath -o build/train ./deploy/dev/train && \
	build/dev vmtest --bin $(BIN) --train build/train --kernel $(VM_KERNEL) --dir build/vm/stage && echo "vmtest took $$(( $$(date +%s) - start )) s"

# Debian's kernel for virtual machines, as it is in the package: unpacked here, not installed on this machine.
$(VM_KERNEL):
	@rm -rf build/vm/download && mkdir -p build/vm/download && $(sudo) && $$as apt-get update -qq && \
	package=$$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$$/\1/p' | head -1) && \
	echo "downloading from Debian: $$package" && cd build/vm/download && apt-get download -qq -o APT::Sandbox::User=root "$$package" && dpkg-deb -x *.deb kernel && mv kernel ../

# Debian 13's opencryptoki and the libraries it needs, unpacked here and not installed: with lists of its own, apt gets
# and verifies them on any Debian, from where this machine gets its own. The soft token of Debian 12's has neither EC nor AES-GCM.
$(OPENCRYPTOKI):
	@mirror() { apt-get indextargets --format '$$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -1; } && \
	debian=$$(mirror) && { [ -n "$$debian" ] || { $(sudo) && $$as apt-get update -qq && debian=$$(mirror); }; } && \
	rm -rf build/apt && mkdir -p build/apt/{lists,archives}/partial build/apt/preferences.d && cd build/apt && touch status && \
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg target=Packages] $$debian trixie main" >sources.list && \
	echo "downloading from Debian 13: opencryptoki" && \
	apt="apt-get -qq -o Dir::Etc=$$PWD -o Dir::State=$$PWD -o Dir::State::status=$$PWD/status -o Dir::Cache=$$PWD \
	  -o APT::Default-Release=trixie -o APT::Sandbox::User=root -o Acquire::Retries=3 -o APT::Update::Error-Mode=any" && \
	$$apt update && $$apt install -y --download-only --no-install-recommends opencryptoki >/dev/null && \
	printf '%s\n' archives/*.deb | xargs -I{} dpkg-deb -x {} unpacked && mv unpacked $(CURDIR)/$@ && rm -rf $(CURDIR)/build/apt || \
	{ echo "opencryptoki could not be had from the mirror of Debian that apt uses (suite trixie): see the lines above"; exit 1; }

vet: ## gofmt and go vet
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	@CGO_ENABLED=1 go vet ./...

fuzz: ## each fuzz target for FUZZTIME (default 1m)
	@for t in $$(git grep -lE '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9]+' $$t/*_test.go | cut -c6-); do \
	    echo "$$t $$f"; CGO_ENABLED=1 go test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-1m} -fuzzminimizetime 20x ./$$t || exit 1; done; done

bench: ## benchmarks, each a ratio against a named peer in one run
	@set -o pipefail; CGO_ENABLED=1 go test -p 1 -timeout 60m -run '^$$' -bench . -benchtime 1s ./... | grep -E '^(Benchmark|pkg|ok|FAIL|panic|---)' 
	@set -o pipefail; cd attest/peer && CGO_ENABLED=1 go test -bench . -benchtime 1s ./... | grep -E '^(Benchmark|pkg|ok|FAIL|panic|---)' 

clean: ## remove what was built
	@rm -rf bin build
