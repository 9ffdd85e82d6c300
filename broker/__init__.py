"""The broker: what comes in (`receiver`, `gateway`), logs (`log`), decisions (`core`), Meta's stand-in (`sandbox`).

Imports run one way: `schemas ← broker.core ← broker.{errors,clock,metrics,secrets} ← broker.log ← broker.*, workers ←
broker.{trial,compose,cli}`. `ARCHITECTURE.md` is the tour, `tests/test_imports.py` keeps the direction.
"""
