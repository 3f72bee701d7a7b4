"""OrthoViT beside timm's vision transformer with the same weights, and images of sizes that it was not made for."""

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_rounding
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unitary_layers import OrthoViT

E, DEPTH, PATCH, SIDE = 12, 3, 4, 8


def small(**options) -> OrthoViT:
    sizes = {"depths": (1, 2), "embed_dim": E, "num_heads": 3, "patch_size": PATCH, "img_size": SIDE}
    return OrthoViT(**sizes, dtype=torch.float64, **options).eval()


def of_timm(model: OrthoViT) -> VisionTransformer:
    """timm's transformer of the mean of all positions, with the weights of a model of ours."""
    sizes = {"img_size": SIDE, "patch_size": PATCH, "in_chans": 1, "embed_dim": E, "depth": DEPTH, "num_heads": 3}
    options = {"qkv_bias": False, "class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 10}
    twin = VisionTransformer(**sizes, **options, norm_layer=nn.LayerNorm).double().eval()
    twin.norm.eps = model.stages[-1].blocks[-1].eps
    pairs = [(twin.pos_embed, model.stem.pos_embed.flatten(2).mT), (twin.patch_embed.proj, model.stem.proj)]
    pairs += [(twin.norm, model.stages[-1].blocks[-1]), (twin.head, model.head.fc)]
    blocks = [block for stage in model.stages for block in stage.blocks][:DEPTH]
    for theirs, ours in zip(twin.blocks, blocks, strict=True):
        pairs += [
            (theirs.norm1, ours.norm1),
            (theirs.norm2, ours.norm2),
            (theirs.attn.qkv.weight, ours.attn.in_proj_weight),
        ]
        pairs += [(theirs.attn.proj.weight, ours.attn.out_proj.weight), (theirs.attn.proj.bias, torch.zeros(E))]
        pairs += [(theirs.mlp.fc1, ours.mlp[0]), (theirs.mlp.fc2, ours.mlp[2])]
    with torch.no_grad():
        for to, source in pairs:
            if isinstance(to, nn.Module):
                to.weight.copy_(source.weight)
                to.bias.copy_(source.bias)
            else:
                to.copy_(source)
    return twin


def test_it_is_timms_transformer_with_orthogonal_weights():
    model = small()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.normal_()
    x = torch.randn(3, 1, SIDE, SIDE, dtype=torch.float64)
    assert_rounding(model(x), of_timm(model)(x), n=1000 * E)


def test_images_of_other_sizes_are_padded_to_whole_patches():
    model, x = small(), torch.randn(2, 1, 9, 15, dtype=torch.float64)
    assert model.forward_features(x).shape == (2, E, 3, 4)
    assert torch.equal(model(x), model(F.pad(x, (0, 1, 0, 3))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": ()}, "depths of one or more stages"),
        ({"num_heads": 5}, "num_heads to divide"),
        ({"img_size": 0}, "img_size to be an integer of at least 1"),
        ({"attention_layer": "Attention9"}, "attention_layer to be a class or the name"),
        ({"score": "cosine"}, "score to be one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OrthoViT(**({"embed_dim": E, "num_heads": 3} | options), device="meta")


def test_an_exported_model_takes_any_batch():
    model, x = small(), torch.randn(5, 1, SIDE, SIDE, dtype=torch.float64)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x[:3],), dynamic_shapes=({0: batch},), strict=False)
    assert_rounding(program.module()(x), model(x), n=1000 * E)
