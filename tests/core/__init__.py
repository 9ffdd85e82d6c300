"""Decisions, without fixtures or asyncio: `tests/core` mirrors `broker/core`."""
