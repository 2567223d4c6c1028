# UperNet, ConvNeXt V2-Atto, for some hundreds of images; not published. docs/own_data.md.
_base_ = [
    "../_base_/models/upernet_convnext.py",
    "../_base_/datasets/small_semantic.py",
    "../_base_/schedules/small_iters.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnextv2_atto"
channels = list(arch_fields(arch)["hidden_sizes"])
width = 64
model = dict(
    data_preprocessor=dict(size=(384, 384)),
    backbone=dict(
        arch=arch,
        drop_path_rate=0.1,
        layer_scale_init_value=0.0,  # GRN takes its place
        init_cfg=dict(type="Pretrained", checkpoint="convnextv2_atto.fcmae_ft_in1k"),
    ),
    decode_head=dict(
        in_channels=channels,
        channels=width,
        # The second loss weighs the classes alike, as mIoU does; the first alone leaves rare ones
        # and thin ones out.
        loss_decode=[
            dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            dict(type="LovaszLoss", per_image=False, reduction="none", loss_weight=1.0),
        ],
    ),
    auxiliary_head=dict(in_channels=channels[2], channels=width),
)
