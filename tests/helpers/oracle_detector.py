"""A detector that finds exactly what is annotated."""

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import nn


@MODELS.register_module()
class OracleDetector(BaseDetector):
    """Predicts the annotations, which the test pipeline loads after it has resized the image."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.weight = nn.Parameter(torch.ones(1))

    def predict(self, batch_inputs, batch_data_samples):
        """Return the samples with what is annotated as found."""
        for sample in batch_data_samples:
            truth = sample.gt_instances
            sample.pred_instances = InstanceData(
                bboxes=getattr(truth.bboxes, "tensor", truth.bboxes),
                labels=truth.labels,
                scores=torch.full((len(truth.labels),), 0.9),
            )
        return batch_data_samples

    def loss(self, batch_inputs, batch_data_samples):
        """Stand in for an abstract method."""

    _forward = extract_feat = loss
