"""The deterministic simulation: the whole broker in one thread, on virtual time, with seeded faults.

    faults.py   chance: latencies, which kinds of fault strike, and a tally that fails a batch they never struck in
    loop.py     `VirtualLoop`, `Process` (frozen, killed, stopped), `SimClock`, `Sim`: one run of one seed
    cluster.py  what of a log outlives processes: partitions, open steps, fencing, groups, sessions, reachability
    log.py      `SimulatedLog`: a process's client of the cluster, a `LogEngine` held by the contract suite
    net.py      `Net`: calls between processes, with every way a call can fail
    harness.py  the simulated log under the contract suite

A run is put together like this:

    with Sim(seed) as sim:
        cluster, net = SimulatedCluster(sim), Net(sim)
        sim.faults.plan("step.lost", 0.01, until_s=500.0)      # strikes by chance
        sim.faults.plan("process.kill")                        # struck by the schedule
        sim.process("worker-1", worker)                        # async def worker(process): …
        sim.at(30.0, sim.restart, "worker-1", 3.0)
        sim.run(600.0)
        sim.stop("worker-1")
        sim.run(60.0)
        tally.add(sim.faults.planned, sim.faults.struck)

A process makes its own `SimulatedLog(cluster, process, specs)`, takes `process.clock` and `process.random`, and ends
when `process.stopping` is set. What several processes and the checker share (a list of what a bot took) belongs to the
world: whoever writes to it from a process's code does so in a handler of `Net`, or asks `process.alive` first.

What makes runs differ although the seed is the same: iterating over a set of strings, `id()` as a sort key, the real
clock, a random generator not from `sim.random` or `process.random`.
"""
