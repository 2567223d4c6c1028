"""What runs the shards of an extraction: this process, or the workers of Ray.

An engine is a generator function of a writer, the shards and a function that is called with numbers
of images that are done. It yields the report of every shard, in any order.
"""

from .local import run as run_local
from .ray import run as run_ray

# name -> the engine, and the format of the files that it writes by default
ENGINES = {"local": (run_local, "safetensors"), "ray": (run_ray, "parquet")}
