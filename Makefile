.PHONY: check lint types test wheel docs docs-check format

check: lint types docs-check test wheel  ## everything that CI runs

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	OMP_NUM_THREADS=1 pytest -q -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=95

wheel:
	rm -rf dist
	python -m build --wheel --no-isolation --outdir dist .
	rm -rf dist/site && python -m pip install --quiet --no-deps --target dist/site dist/*.whl
	cd dist && PYTHONPATH=site python -c "import dmp_cli, sys; assert 'site' in dmp_cli.__file__" 
	cd dist && PYTHONPATH=site python -m dmp_cli --help
	cd dist && PYTHONPATH=site python -m dmp_cli tasks

docs:  ## write the generated pages anew
	python docs/generate.py

docs-check:
	python docs/generate.py --check

format:
	ruff format .
	ruff check --fix .
