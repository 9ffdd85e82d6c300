"""What is said: to us by Meta, by us to Meta, and between our own stages. Types without behaviour.

`webhook` is Meta's side, `graph` ours towards Meta, `records` what stands on our logs, `settings` what an operator
may say. Nothing here imports anything of ours outside this package.
"""
