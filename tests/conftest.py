"""Settings of the whole suite: no network, and one thread so that timing never decides a result."""

import contextlib
import os
import sys

# Before anything imports huggingface_hub: a test that would go online must fail, not wait.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

# mmengine imports yapf, which keeps its grammar in the user's cache and may read it while another
# process still writes it. Here it is written before pytest-xdist starts its workers.
with contextlib.suppress(ImportError):
    import yapf  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
    # Autograd starts the threads of all devices at the first backward pass. There is none yet; once
    # torch.export was used there is one, and no test could fork after its thread has started.
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    yield
    # What a test compiled counts towards dynamo's limit of recompilations in the tests after it.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
