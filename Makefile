# keyturn: `make demo` shows the main job for real, `make test` runs all tests.
# Both install what they need and say so. See README.md.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help build deps demo up down test test-slow test-vault vet fuzz bench clean

export CGO_ENABLED := 0
BIN := bin
PROGRAMS := keyturn keyturnd keyturn-notary keyturn-agent age-plugin-keyturn
PACKAGES := gcc libc6-dev xfsprogs strace softhsm2 opencryptoki libtpm2-pkcs11-1 swtpm swtpm-tools age openssl opensc minisign openssh-client tpm2-tools tpm2-openssl osslsigncode git

help: ## show this list
	@sed -nE 's/^([a-z-]+):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

deps: ## install what build, demo and test need (Debian)
	@missing=$$(dpkg-query -W -f='$${db:Status-Status} $${Package}\n' $(PACKAGES) 2>/dev/null | awk '$$1=="installed"{print $$2}' | sort | comm -13 - <(printf '%s\n' $(PACKAGES) | sort)); \
	if [ -n "$$missing" ]; then echo "installing from Debian:" $$missing; \
	  as=$$([ $$(id -u) = 0 ] || echo sudo); \
	  $$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; fi
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
	@CGO_ENABLED=1 go test -timeout 20m ./...

test-slow: deps ## the tests that take minutes, and gigabytes of disk
	@KEYTURN_SLOW=1 go test -count=1 -timeout 60m -run 'Sparse64GiB|SealAcross4GiB' -v ./signoff/weights

test-vault: deps ## hsm/vault against a real Vault server, which is built first (minutes)
	@mkdir -p build
	@echo "building a Vault server for the tests"; cd hsm/vault/testserver && go build -trimpath -ldflags='-s -w' -o $(CURDIR)/build/vault-server .
	@CGO_ENABLED=1 KEYTURN_VAULT_SERVER=$(CURDIR)/build/vault-server go test -count=1 ./hsm/vault

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
