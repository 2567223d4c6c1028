"""Train a ConvNeXt classifier with Lightning on scikit-learn's handwritten digits.

pip install lightning scikit-learn
python examples/lightning_classifier.py --epochs 5
"""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from timm.optim import param_groups_layer_decay
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from convnext_backbone import ConvNextForImageClassification


class Classifier(lightning.LightningModule):
    """A network, its loss and its optimizer; timm's layer decay reads `group_matcher()`."""

    def __init__(self, network: ConvNextForImageClassification) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        return self.network(images, labels=labels).loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        hits = self.network(images).logits.argmax(1) == labels
        self.log("accuracy", hits.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = param_groups_layer_decay(self.network, layer_decay=0.9)
        return torch.optim.AdamW(groups, lr=2e-3)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--out", default="work_dirs/digits", help="where the classifier is saved")
args = parser.parse_args()

images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = images.float().view(-1, 1, 8, 8) / 16
train = DataLoader(TensorDataset(images[:1500], labels[:1500]), 64, shuffle=True)
val = DataLoader(TensorDataset(images[1500:], labels[1500:]), 64)
network = ConvNextForImageClassification(
    num_channels=1, patch_size=1, hidden_sizes=(16, 32, 64), depths=(1, 1, 2), num_labels=10,
    kernel_size=3, layer_scale_init_value=1.0,
)  # fmt: skip
trainer = lightning.Trainer(max_epochs=args.epochs, default_root_dir=args.out, devices=1)
trainer.fit(Classifier(network), train, val)
print(f"accuracy {trainer.callback_metrics['accuracy'].item():.3f}")
network.save_pretrained(args.out)
