# The commands of README.md. `make repro` and `make test` need Python 3.11 to 3.13, make and git, and nothing else.

PYTHON ?= python3
SUITE ?= digits
PORT ?= 5000
CIFAR10 := $(if $(TEACHER),cifar10_$(TEACHER:sharp=sharp_teacher),cifar10)
ifeq ($(TEACHER),sharp)
PAPER := [scratch,kd,triplet]
else  # with kl, KD at temperature 1: these teachers have small logits
PAPER := [scratch,kd,kl,triplet]
endif
RESNETS := [scratch,logit_mse,kd,pair,triplet,kd_triplet,fitnet,at,sp,pkt,cc,nst,vid,rkd,crd,dkd,dist]
LEFT := echo "params.yaml now names this suite, so that dvc repro keeps it; make restore goes back"
UV_VERSION := 0.13.9
UV := $(or $(shell command -v uv),.uv/bin/uv)
# For CPU=1: what is left out, and what comes in its place, of the versions in uv.lock
CUDA = $(shell sed -nE 's/^name = "((nvidia|cuda|triton).*)"/\1/p' uv.lock)
TORCH = $(shell awk -F'"' '/^name = "torch(vision)?"$$/ {name = $$2} /^version/ && name {print name "==" $$2; name = ""}' uv.lock)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_PYTHON_DOWNLOADS := never
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export TRIPLETKD_QUIET := $(QUIET)

.PHONY: help env repro experiments resnets paper cluster export verify pull push release test smoke slow reliability lint audit ui relog bench pictures restore clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1 \t/' | expand -t 22

env: .venv/.synced ## the environment, from uv.lock; CPU=1 without the 4 GB of CUDA
repro: env ## regenerate all results of params.yaml's run.suites: dvc repro; QUIET=1 prints problems only
	@$(if $(QUIET),,dvc repro --quiet --single-item code; test 0 = $$(dvc repro --dry | grep -c "^Running stage '.*@") || tripletkd plan)
	dvc repro $(if $(QUIET),--quiet)
	-@python -m tripletkd.tracking$(if $(QUIET), > /dev/null)
	@$(if $(QUIET),,dvc stage list --name-only | sed -n 's|^tabulate@\(.*\)|the report: results/\1/report.html|p')

experiments: env ## experiments side by side: their metrics, and what of params.yaml differs between them
	@# without the columns of files, of lists and of the queue; in a pipe nothing is cut to 80 columns
	@[ -t 1 ] || export COLUMNS=1000; dvc exp show --no-pager --only-changed --drop '^[^:]*/[^:]*$$|lock$$|^run\.|^claims|^(State|Executor)$$'

# Not by `dvc exp run`, which first deletes the seeds that dvc.lock does not know, such as those of a run that was stopped
SELECT = python -c 'import sys; from dvc.utils.hydra import apply_overrides; apply_overrides("params.yaml", sys.argv[1:])'

resnets: env ## regenerate the suite digits_resnet, 17 methods on small ResNets: 17 minutes on two CPU cores
	@$(SELECT) 'run.suites=[digits_resnet]' 'run.methods=$(RESNETS)' 'run.ablations=[]' 'run.splits=[test]'
	dvc repro
	@$(LEFT)

# Runs that were pulled need no images; a training that was begun here has them, and goes on
paper: env ## regenerate the paper's suite, CIFAR-10 at full length: for a GPU; YES=1 does not ask before days of work; TEACHER=sharp: under our teacher as it was trained; TEACHER=authors: under the authors' weights, which it fetches
	@$(if $(filter-out authors sharp,$(TEACHER)),$(error TEACHER=$(TEACHER): expected authors, sharp, or nothing))
	@$(if $(wildcard runs/$(CIFAR10)),,tripletkd plan $(CIFAR10) 'run.methods=$(PAPER)' 'run.ablations=[]' \
		'run.splits=[test]' $(if $(YES),,--ask))
	@$(SELECT) 'run.suites=[$(CIFAR10)]' 'run.methods=$(PAPER)' 'run.ablations=[]' 'run.splits=[test]'
	dvc repro $(if $(wildcard data/$(CIFAR10)/images.npy),,$(if $(wildcard runs/$(CIFAR10)),--allow-missing))
	@$(LEFT)

cluster: env ## what is due as jobs of a Slurm cluster, SBATCH="--time=4:00:00 ..."; ARRAY=1: a job for each seed
	tripletkd submit $(if $(ARRAY),--seed-array) $(SBATCH)

export: env ## a student of METHOD (triplet) in SUITE, SEED=N or the first, and the teacher as ONNX files, from the runs that are there
	@python -m stages.export suite=$(SUITE) method=$(or $(METHOD),triplet) $(if $(SEED),--seed $(SEED))
	@python -m stages.export suite=$(SUITE) method=teacher

verify: env ## measure SUITE's weights again, make its tables again, and compare every byte; METHOD=kd also trains that again
	tripletkd verify $(SUITE) $(if $(METHOD),--train $(METHOD))

pull: env ## the runs of SUITE that others trained, from DVC's remote
	tripletkd pull $(SUITE)

push: env ## the runs of SUITE to DVC's remote
	tripletkd push $(SUITE)

release: env ## weights, model cards, tables and hashes of SUITE, verified, as one archive in dist/, of the commit
	tripletkd release $(SUITE)

test: env ## all tests but those marked slow, network or smoke, on all processors
	pytest --numprocesses auto --dist loadfile

smoke: env ## whole commands, and the pipeline, shrunk, in a clean copy
	pytest -m smoke

slow: env ## the tests marked slow, the reliability suite among them; an hour and a half
	pytest -m 'slow or network'

reliability: env ## kill, starve and mislead it in more than a thousand ways, and write docs/reliability.md: half an hour
	pytest --numprocesses auto -m 'fault and not network' --reliability=docs/reliability.md

lint: env ## what pre-commit checks
	pre-commit run --all-files

audit: env ## known vulnerabilities in the locked packages; asks PyPI, so it needs the network
	$(UV) export --locked --no-emit-project --quiet | pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r /dev/stdin

restore: ## params.yaml, dvc.lock and results/ as they were committed, and the runs of that time with their logs
	@git status --short params.yaml dvc.lock code.json results
	@git diff --quiet HEAD params.yaml || { mkdir -p checkpoints && cp params.yaml checkpoints/params.$$$$.yaml && \
		echo "params.yaml as it was: checkpoints/params.$$$$.yaml"; }
	@git restore --source=HEAD --staged --worktree params.yaml dvc.lock code.json results
	@# what is in no commit and not in the cache, such as a run that failed, is kept aside
	@test -z "$$(git ls-files --others --exclude-standard results)" || { mkdir -p checkpoints/before-restore.$$$$ && \
		git ls-files -z --others --exclude-standard results | tar --null -c -T - | tar -x -C checkpoints/before-restore.$$$$ && \
		git clean --quiet --force -d results && echo "what is in no commit: checkpoints/before-restore.$$$$/results"; }
	@dvc checkout --allow-missing || { mkdir -p checkpoints && cp -R runs checkpoints/before-restore.$$$$ && dvc checkout --force --allow-missing; }
	-tripletkd pull $(SUITE)

ui: env ## MLflow's pages, on http://127.0.0.1:5000 or PORT=..., or where MLFLOW_TRACKING_URI is a server's; names those to open
	@python -m tripletkd.tracking ui $(PORT)

relog: env ## log every run record, export and table that MLflow does not have yet
	@python -m tripletkd.tracking

bench: env ## images per second, ours against a plain loop: see benchmarks/README.md
	python -m benchmarks.step paper
	python -m benchmarks.step field --images 512 --plain-images 512

pictures: env ## the README's pictures of pages again, with Chromium
	python docs/pictures.py

clean: ## what the pipeline made, what was kept in checkpoints/ among it, except results/ and DVC's cache
	rm -rf data weights runs logs checkpoints exports

.venv/.synced: pyproject.toml uv.lock | $(UV)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"error: {sys.executable} is Python {v.major}.{v.minor}; 3.11 to 3.13 is needed: make PYTHON=python3.12 ...")'
	$(UV) sync --locked --compile-bytecode --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" \
		$(if $(CPU),$(addprefix --no-install-package ,torch torchvision $(CUDA)))
	$(if $(CPU),$(UV) pip install --quiet --python .venv --no-deps --index-url $(TORCH_INDEX) $(TORCH))
	@touch $@

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
