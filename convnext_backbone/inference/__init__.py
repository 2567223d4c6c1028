"""`optimize_for_inference`: fold, cast, pack and compile a network.

- `optimize`: the call, and the module that holds the optimized network.
- `unmodified`: which parts of a network are as built, so that they may be replaced.
- `fold`: layer scale, GRN's shift and norms' affine parts into the layers behind them.
- `pack`: convolutions and blocks with weights packed for oneDNN.
"""

from .optimize import OptimizedModule, optimize_for_inference

__all__ = ["OptimizedModule", "optimize_for_inference"]
