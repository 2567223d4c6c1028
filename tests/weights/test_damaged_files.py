"""Random damage to every container: ValueError or OSError, and nothing else."""

import random
import shutil

import pytest
import torch
from helpers.originals import ORIGINALS, V1
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone
from convnext_backbone.weights.native import describe, open_weights


def _torch(old_format):
    def write(folder):
        torch.save(
            {"model": V1.state_dict(), "epoch": 3},
            folder / "w.pth",
            _use_new_zipfile_serialization=not old_format,
        )
        return folder / "w.pth"

    return write


def _safetensors(folder):
    save_file(V1.state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


CONTAINERS = {
    "zip": _torch(False),
    "old": _torch(True),
    "safetensors": _safetensors,
    "keras_h5": ORIGINALS["keras_h5"].write,
    "keras_weights_h5": ORIGINALS["keras_weights_h5"].write,
    "keras_archive": ORIGINALS["keras_archive"].write,
    "shards": ORIGINALS["huggingface-v1_shards"].write,
}
PER_CONTAINER = 60


def _damage(data, chance):
    """Cut the bytes, or change up to 8 of them: anywhere, at the start, or at the end."""
    if chance.random() < 0.25:
        return bytes(data[: chance.randrange(len(data))])
    data = bytearray(data)
    ends = min(len(data), chance.choice([64, 1024, 8192]))
    for _ in range(chance.randint(1, 8)):
        place = chance.choice(
            [chance.randrange(len(data)), chance.randrange(ends), -1 - chance.randrange(ends)]
        )
        data[place] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONTAINERS)
def test_random_damage_is_a_clear_error_or_other_numbers(name, tmp_path):
    chance = random.Random(name)
    origin = CONTAINERS[name](tmp_path)
    broken = tmp_path / "broken"
    if origin.is_dir():
        shutil.copytree(origin, broken)
        files = sorted(origin.iterdir())
    else:
        broken = tmp_path / f"broken{origin.suffix}"
        files = [origin]
    outcomes = {"read": 0, "refused": 0}
    for index in range(PER_CONTAINER):
        file = chance.choice(files)
        target = broken / file.name if broken.is_dir() else broken
        target.write_bytes(_damage(file.read_bytes(), chance))
        try:
            describe(open_weights(broken))
            ConvNextBackbone.from_pretrained(broken)
            outcomes["read"] += 1
        except (ValueError, OSError):
            outcomes["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"input {index}: {type(error)}: {error}") from error
        if broken.is_dir():
            target.write_bytes(file.read_bytes())
    assert outcomes["refused"] > PER_CONTAINER // 10
