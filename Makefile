# kuorum is built with the Go of the PATH; "make help" lists what there is.

.DEFAULT_GOAL := help
.NOTPARALLEL:

# One static program; and one set of flags for builds and tests, since Go
# compiles every package again for another.
export CGO_ENABLED = 0

go      = go
kuorum  = bin/kuorum
bundled = $$(test -e internal/bundle/data/manifest.json && echo bundled)
lint    = $(go) tool -modfile=tools/go.mod golangci-lint

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

needs: ## install what is needed from the distribution: gcc, libseccomp, nft
	$(go) run ./cmd/mkbundle needs

bundle: ## build Kubernetes, etcd and the rest from upstream/, if not up to date
	$(go) run ./cmd/mkbundle

build: ## build bin/kuorum, with the bundle inside if there is one
	$(go) build -ldflags="-s -w" -tags="$(bundled)" -o $(kuorum) ./cmd/kuorum

up: needs bundle build ## start a cluster of three servers on this machine
	$(kuorum) up

down: build ## end that cluster and remove every trace of it
	$(kuorum) down

test: needs bundle build lint unit lab ## everything that must pass, from a fresh clone

unit: ## test without a cluster; no root needed
	$(go) test -count=1 -timeout=5m ./...

lab: ## test with real clusters, as root
	$(go) run ./cmd/mkbundle needs tests
	$(go) test -count=1 -timeout=3m -p=1 -tags lab -run='^TestReal' ./internal/testnet ./internal/relocation ./internal/fault ./internal/vrrp ./internal/tickle ./internal/loadbalancer
	$(go) test -count=1 -timeout=60m -tags lab ./test/lab/...

lint: ## check style, with .golangci.yml
	$(lint) run ./...

format: ## rewrite the source in the style that lint wants
	$(lint) fmt ./...

check: lint unit ## what to run before a commit
	$(go) mod tidy -diff
	$(go) vet -tags lab ./...

bench: ## measure
	$(go) test -run='^$$' -bench=. -benchmem ./...

clean: ## remove what was built, the bundle too (the Go cache stays)
	rm -rf bin build internal/bundle/data

.PHONY: help needs bundle build up down test unit lab lint format check bench clean
