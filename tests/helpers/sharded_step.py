"""What each process of tests/openmmlab/test_sharding.py runs.

In a module of its own: a spawned process has to import its function, and pytest's test modules
cannot be imported by name.
"""

import copy

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

from convnext_backbone import ConvNextBackbone
from convnext_backbone.openmmlab.layer_decay import layer_groups
from convnext_backbone.openmmlab.sharding import wrap_blocks

SETTINGS = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 2, 3, 1),
    "out_features": ("stage1", "stage2", "stage3", "stage4"),
    "use_grn": True,
    "layer_scale_init_value": 0.0,
}


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


def worker(rank, port, out):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store)
    torch.manual_seed(0)
    whole = ConvNextBackbone(**SETTINGS)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randn(4, 3, 64, 64)
    sharded = FullyShardedDataParallel(
        copy.deepcopy(whole),
        auto_wrap_policy=wrap_blocks,
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
    if rank == 0:
        expected = groups_of(whole)
        units = sum(isinstance(m, FullyShardedDataParallel) for m in sharded.modules())
        step(whole, images, 0, 1)
        state = {name: p.detach() for name, p in whole.named_parameters()}
        torch.save((groups, expected, weights, state, units), out)
    dist.barrier()
    dist.destroy_process_group()
