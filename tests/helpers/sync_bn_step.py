"""What each process of tests/openmmlab/test_cpu_sync_bn.py runs; a spawned process imports it."""

import torch
import torch.distributed as dist

from convnext_backbone.openmmlab.cpu_sync_bn import CpuSyncBN

SHARES = (3, 1)  # images of each process
CASES = {
    "plain": ({}, torch.float64),
    "cumulative": ({"momentum": None}, torch.float64),
    "not affine": ({"affine": False}, torch.float64),
    "not tracking": ({"track_running_stats": False}, torch.float64),
    "bfloat16": ({}, torch.bfloat16),
}


def batch():
    """Images, and the gradient of a loss in the outputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SHARES), 5, 3, 2, generator=generator, dtype=torch.float64)
    return 2 * x + 7, torch.randn(x.shape, generator=generator, dtype=torch.float64)


def run(layer, x, grad):
    """Train twice on `x`; return outputs, gradients, running statistics and an evaluation."""
    x = x.clone().requires_grad_()
    layer(x.detach())
    y = layer(x)
    y.backward(grad.to(y))
    grads = [p.grad for p in layer.parameters()]
    after = [b.clone() for b in layer.buffers()]
    return y.detach(), x.grad, grads, after, layer.eval()(x).detach()


def filled(layer):
    """Give the layer weights that are not ones and zeros."""
    for number, parameter in enumerate(layer.parameters(), start=1):
        parameter.data = torch.linspace(-number, 2, 5, dtype=parameter.dtype)
    return layer


def worker(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(store, 2))
    results = {}
    for name, (options, dtype) in CASES.items():
        layer = filled(CpuSyncBN(5, **options, dtype=torch.promote_types(dtype, torch.float32)))
        x, grad = (part.split(SHARES)[rank].to(dtype) for part in batch())
        results[name] = run(layer, x, grad)
    torch.save(results, f"{out}{rank}")
    dist.barrier()
    dist.destroy_process_group()
