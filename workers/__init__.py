"""Stages: they fetch, let `broker.core` decide, and do what was decided. Each owns what it touches and nothing else.

customer     conversations → deliveries and sends; state in steps      supervisor   a record that crashes thrice
sender       sends → Graph; intents before calls, permits last         turnstile    who asks for the next permit
graph        the HTTP client towards Graph, decides nothing            actor        one owner, a bounded mailbox
delivery     deliveries → sinks, in order for each customer            gate         which attempt may go next
sinks        how an event looks to a sink                              connector    HTTP that trusts no address
"""
