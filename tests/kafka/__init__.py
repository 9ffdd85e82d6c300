"""A real Apache Kafka for tests: where its jars come from, its processes, and the fixtures that offer it.

`jars` gets the broker from Maven Central, once; `cluster` starts, freezes, kills and restarts brokers on loopback;
`fixtures` gives a test the session's one broker, or says why there is none. A test keeps to topics, groups and
transactional ids under a prefix of its own (`kafka_prefix`), so one broker serves them all.
"""
