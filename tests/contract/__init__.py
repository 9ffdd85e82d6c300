"""One suite that every log engine passes: what `broker/log/contract.py` promises, sentence by sentence.

`engines.py` lists the engines and is where a new one is plugged in; `harness.py` says what an engine must let the suite
do to it; `programs.py` holds the stages the tests run; `child.py` is the process that is killed.
"""
