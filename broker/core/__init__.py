"""Decisions: every rule of the field, pure and synchronous. They take instants and chance as arguments, return values.

    in     signature  webhook (items, envelope)  identity  message  opaque
    who    customer (customer_state, dedupe, deadlines, window, routing, reference, status, botview, idmap)
    out    sender  slot  pacing  lanes  gates  outcome
    on     breaker  concurrency  retry  watermark  addresses

Nothing here knows a log, a socket or a clock, so each rule is tested as a table and the whole of it can be simulated.
"""
