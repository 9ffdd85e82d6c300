"""The proofs of the promises in README.md, from pure decisions up to processes that are killed."""
