"""What each process of tests/openmmlab/test_sharding.py runs.

In a module of its own: a spawned process has to import its function, and pytest's test modules
cannot be imported by name.
"""

import copy
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, size_based_auto_wrap_policy

from convnext_backbone import ConvNextBackbone
from convnext_backbone.models.block import Stage
from convnext_backbone.openmmlab.layer_decay import layer_groups
from convnext_backbone.openmmlab.sharding import wrap_blocks

SETTINGS = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 2, 3, 1),
    "out_features": ("stage1", "stage2", "stage3", "stage4"),
    "use_grn": True,
    "layer_scale_init_value": 0.0,
}


POLICIES = (
    ("blocks", wrap_blocks),
    ("stages", ModuleWrapPolicy({Stage})),
    ("layers", partial(size_based_auto_wrap_policy, min_num_params=500)),
)


def groups_of(model):
    """{name without wrappers: (lr scale, weight decay)} of every parameter."""
    return {
        name.replace("_fsdp_wrapped_module.", ""): (group.lr_scale, group.weight_decay)
        for group in layer_groups(model, decay_rate=0.7, weight_decay=0.05)
        for name in group.param_names
    }


def step(model, images, rank, world_size):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    own = images[rank::world_size]
    sum(feature.square().mean() for feature in model(own)).backward()
    optimizer.step()


def worker(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(store, 2))
    torch.manual_seed(0)
    whole = ConvNextBackbone(**SETTINGS)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randn(4, 3, 64, 64)
    results = {name: shard_and_step(whole, policy, images, rank) for name, policy in POLICIES}
    expected = groups_of(whole)
    step(whole, images, 0, 1)
    state = {name: p.detach() for name, p in whole.named_parameters()}
    if rank == 0:
        torch.save((results, expected, state), out)
    dist.barrier()
    dist.destroy_process_group()


def shard_and_step(whole, policy, images, rank):
    """Return the parameter groups, the weights after a step, and the number of units."""
    sharded = FullyShardedDataParallel(
        copy.deepcopy(whole),
        auto_wrap_policy=policy,
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    groups = groups_of(sharded)
    step(sharded, images, rank, 2)
    with FullyShardedDataParallel.summon_full_params(sharded):
        weights = {
            name.replace("_fsdp_wrapped_module.", ""): p.detach().clone()
            for name, p in sharded.named_parameters()
        }
    units = sum(isinstance(m, FullyShardedDataParallel) for m in sharded.modules())
    return groups, weights, units
