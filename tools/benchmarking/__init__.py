"""What tools/benchmark.py is made of: contenders, cells, targets, reports.

Imports point that way only: `contenders` knows implementations, `cells` times them, `targets`
judges what was timed, `reports` shows it.
"""
