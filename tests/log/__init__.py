"""The parts of the log engines, each by itself; what an engine owes as a whole stands in `tests/contract`."""
