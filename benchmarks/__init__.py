"""Benchmarks: openapi_ws beside its peers in one run, ratios to raw aiohttp. ``python -m benchmarks``; see README.md."""
