# UperNet on ConvNeXt V2-H with its parameters, gradients and optimizer state sharded over the GPUs,
# by mmengine's FlexibleRunner: start it with tools/dist_train.sh.
_base_ = "./upernet_convnextv2-h_8xb2-amp-160k_ade20k-512x512.py"

runner_type = "FlexibleRunner"
strategy = dict(
    type="FSDPStrategy",
    model_wrapper=dict(auto_wrap_policy="convnext_backbone.openmmlab.sharding.wrap_blocks"),
    # One file that everything else can load, in place of one per GPU.
    state_dict_cfg="full",
)
optim_wrapper = dict(use_fsdp=True)
