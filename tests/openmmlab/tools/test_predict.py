"""What `predict` writes can be read back by OpenMMLab."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytestmark = pytest.mark.openmmlab

from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmengine.structures import PixelData

from convnext_backbone.openmmlab.tools.predict import LabelMapWriter, read_image


def written(folder, metainfo, labels):
    from mmseg.structures import SegDataSample

    sample = SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None]))
    LabelMapWriter(folder, metainfo, 0.0, None).add("a", "a.png", sample)
    return folder / "maps" / "a.png"


@pytest.mark.parametrize("classes", [("sky", "wall"), ("building", "sky", "wall"), None])
@pytest.mark.parametrize("type_", ["ADE20KDataset", "CityscapesDataset", "BaseSegDataset"])
def test_a_label_map_is_read_back_as_the_classes_that_were_predicted(type_, classes, tmp_path):
    """Of all classes, of some in another order, with 0 as void and as a class."""
    init_default_scope("mmseg")
    chosen = {} if classes is None else {"metainfo": {"classes": classes}}
    dataset = DATASETS.build({"type": type_, "lazy_init": True, **chosen})
    number = len(dataset.metainfo.get("classes") or range(5))
    labels = np.arange(12).reshape(3, 4) % number
    path = written(tmp_path, dataset.metainfo, labels)
    results = {
        "seg_map_path": str(path), "seg_fields": [], "label_map": dataset.label_map,
        "reduce_zero_label": dataset.reduce_zero_label,
    }  # fmt: skip
    read = TRANSFORMS.build({"type": "LoadAnnotations"})(results)["gt_seg_map"]
    assert read.tolist() == labels.tolist()


def test_the_floats_of_a_threshold_are_labels(tmp_path):
    # As `EncoderDecoder` predicts of one channel: (logits.sigmoid() > threshold) in their type.
    labels = np.array([[0.0, 1.0]], np.float32)
    path = written(tmp_path, {"classes": ("background", "a")}, labels)
    assert np.asarray(Image.open(path)).tolist() == [[0, 1]]


def test_more_classes_than_eight_bits_hold_are_written_in_sixteen(tmp_path):
    metainfo = {"classes": [str(i) for i in range(400)], "reduce_zero_label": True}
    labels = np.array([[0, 254, 255, 399]])
    values = np.asarray(Image.open(written(tmp_path, metainfo, labels)))
    assert values.tolist() == [[1, 255, 256, 400]]


@pytest.mark.parametrize("kind", ["16 bits", "transparent"])
def test_a_picture_shows_what_an_image_of_another_kind_shows(kind, tmp_path):
    grey = np.array([[0, 64], [128, 255]], np.uint8)
    alpha = np.full((2, 2), 255, np.uint8)
    alpha[0, 0] = 0
    if kind == "16 bits":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(np.stack([grey, alpha], axis=-1), "LA")
        grey = np.where(alpha == 0, 255, grey)  # laid on white
    image.save(tmp_path / "a.png")
    _, picture = read_image(lambda data: data, tmp_path / "a.png")
    assert picture.tolist() == np.repeat(grey[..., None], 3, axis=2).tolist()
