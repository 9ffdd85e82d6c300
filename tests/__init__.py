"""The proofs of the promises in design.md, from pure decisions up to processes that are killed."""
