"""What strangers send: machines that think of bodies nobody would write, against a gateway that is really there.

program.py    one call of schemathesis, which reads the OpenAPI document
guided.py     one run of atheris, which follows the code that is reached; a program of its own
test_*.py     both, for a few seconds;  `python -m tests.fuzz --seconds 600` (`make fuzz`) for as long as you like
"""
