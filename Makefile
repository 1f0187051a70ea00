.PHONY: lint test slow bench

lint:
	ruff check .
	ruff format --check .

test:
	pytest -n 2 --dist loadfile

slow:
	pytest -m slow

bench:
	python bench/step_bench.py
