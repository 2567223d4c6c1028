"""Checks before a run; `table.py` lists them with the commands that make them.

A new check is a function in the module of its subject and a row of the table; a check of what a
data set holds is called by `data.py`, and one of the strides and channels of maps lies in
`channels.py`, which also fills them in.
"""
