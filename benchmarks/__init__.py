"""What Depesche costs, beside the barest thing that could do the same, in one run on one machine.

__main__.py        all of it: `make bench`, or `python -m benchmarks --only receiver --runs 5`
bench_receiver.py  CPU for each webhook made durable: Kafka, embedded log, a handler that only reads and answers, a peer
bench_path.py      from webhook to bot at a steady rate: time and CPU, beside a hand-written transactional loop
bench_whole.py     webhook, bot and answer in rising load, all on this machine: latencies, knee, CPU of each process
bench_recovery.py  a worker killed, workers started anew in turn: until all flows again, what latency becomes
bench_customer.py  records a second of the customer stage on Kafka, beside a transactional loop written by hand
bench_sender.py    sends a second of one number without limits, on either log, beside a loop of an aiohttp client
bench_restore.py   customers a second that a new owner takes over, beside reading their records undecoded
bench_memory.py    what a process of each role takes at rest, what a quiet and a live customer add
bench_growth.py    what each record and send costs at more partitions, numbers, customers and sinks
bench_tier.py      how much of Meta's tier is used under backlog, and how often Meta would have refused

load.py            webhooks at a steady rate                 wrk.py              webhooks as fast as they are answered
webhook_servers.py what they are aimed at                    peers/              what people write without Depesche
graph_servers.py   what sends are aimed at                   graph_callers.py    who sends
customer_stages.py who reads `conversations`                 conversations.py   what is on it
bots.py            where webhooks end                        path_peers.py       the hand-written way's processes
deployed.py        a deployment's own processes          outside.py          Meta, Graph and a bot in one process
raw_http.py        HTTP that costs next to nothing
child.py           each of these in a process of its own, pinned     course.py   rate and CPU of the middle of its work
kafka.py           a broker beside them                      rows.py             figures, and how they are written down

`sketch.md` says what each figure ought to be and why, `results/` what it was. Everything measured is production code
on a real log; the rivals are measured in the same run, in turns with it, so that a noisy machine is noisy to all.
"""
