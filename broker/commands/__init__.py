"""Commands that need more than a few lines, each group in a module; `broker.cli` puts them under `depesche`.

terms.py        what all commands share: exit codes, options, how errors become a line and a code
deadletters.py  `depesche deadletters …`      sinks.py  `depesche sinks …`
positions.py    `depesche positions …`
"""
