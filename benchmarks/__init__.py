"""Benchmarks of the project, side by side in one run: `python -m benchmarks`. See README.md."""
