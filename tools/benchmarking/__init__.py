"""The parts of tools/benchmark.py.

Imports point down this list only:
- `reports`: the table, the plot and the figures as plain data.
- `targets`: the ratios to reach.
- `roofline`: the work of a step, and the machine's ceilings.
- `timing`: checks and times all contenders of a cell; `memory`: bytes of a training step.
- `contenders`: the implementations that are compared; `runtimes`: those that run an ONNX file.
- `cell`: a setting, and what was measured there.
"""
