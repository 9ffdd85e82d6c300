"""Logs: the only thing two processes share. `contract` says what an engine owes; two engines owe it.

    contract     appends, leases, steps, followers, readers: read this first
    catalogue    which logs there are and which stages read them
    lease        where a lease stands, buffers and backoff: shared by the engines
    position     how far a stage has read, and which incarnation of a log that speaks of
    embedded*    one SQLite file for one process (store, index, reading, upkeep, coordinator, glance)
    kafka*       Apache Kafka (connection, topics, appends, group, seat, lease, follow, reading, metadata)

`tests/contract` is one suite for both engines, and for the one in memory that the simulation uses.
"""
