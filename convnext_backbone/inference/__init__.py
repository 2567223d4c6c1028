"""`optimize_for_inference`: fold, cast, pack and compile a network."""
