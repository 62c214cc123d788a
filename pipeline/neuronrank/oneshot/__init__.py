"""`neuronrank run`: one pruning run from a command line, on the same library calls as the stages.

`request.py` turns flags into the sections that params.yaml would hold, `calibration.py` finds or collects the
statistics, `execution.py` scores, prunes, saves and evaluates.
"""
