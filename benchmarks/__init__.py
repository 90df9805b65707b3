"""openapi_ws beside its peers, in one run, as ratios to raw aiohttp: ``python -m benchmarks``, see README.md."""
