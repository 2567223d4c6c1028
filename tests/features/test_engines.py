"""Ray's workers write what one process writes, also when one of them is killed."""

import json
import os
import signal
from pathlib import Path

import pytest
from helpers.extraction import BROKEN, WHOLE, contents, extract, make_extractor

from convnext_backbone.features.engines import _Worker
from convnext_backbone.features.extraction import Shard, ShardWriter, extract_features
from convnext_backbone.images.files import ImageList


def _children(pid):
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]


def _workers(pid, title):
    """The processes below this one to which Ray gave the title: of an actor, or of a method."""
    found = []
    for child in _children(pid):
        line = Path(f"/proc/{child}/cmdline").read_bytes()
        found += [child] if line.startswith(title) else _workers(child, title)
    return found


def test_a_shard_that_ends_every_worker_is_named(weights_file, image_folder, tmp_path):
    extract(weights_file, image_folder, tmp_path)
    entries = list(ImageList([image_folder]))[:8]
    plan = json.loads((tmp_path / "plan.json").read_text())
    worker = _Worker()
    worker._writer = ShardWriter(make_extractor(weights_file), tmp_path, plan)
    shard = Shard(0, entries)
    tries = tmp_path / ".features-0000000.tries.part"
    tries.write_bytes(b"...")  # begun three times, and never finished
    assert worker.write([], shard).kept
    assert not tries.exists()
    tries.write_bytes(b"....")
    with pytest.raises(ChildProcessError, match=r"shard 0 \(00\.png to .*\) crashed its worker 4"):
        worker.write([], shard)


def test_a_killed_worker_loses_nothing_and_adds_nothing(weights_file, image_folder, tmp_path):
    options = {"shard_images": 4, "shard_bytes": 20_000}
    extract(weights_file, image_folder, tmp_path / "local", format="parquet", **options)
    killed = []

    def images():
        for number, entry in enumerate(ImageList([image_folder])):
            if number == 24:  # while the workers write, or between two shards
                titles = (b"ray::_Worker.write", b"ray::_Worker")
                workers = [worker for title in titles for worker in _workers(os.getpid(), title)]
                killed.append(workers[0])
                os.kill(killed[0], signal.SIGKILL)
                # What one leaves that is killed while it writes, which this one may not have done.
                partial = tmp_path / "ray" / f".features-000003-00.parquet.{killed[0]}.part"
                partial.write_bytes(b"PAR1")
            yield entry

    extractor = make_extractor(weights_file, device="cpu")
    options = {**options, "engine": "ray", "workers": 2}
    result = extract_features(extractor, images(), tmp_path / "ray", **options)
    assert killed
    assert (result.images, result.failed, result.written) == (WHOLE, len(BROKEN), 11)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
