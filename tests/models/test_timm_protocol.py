"""What timm's own tests ask of its models, asked of every registered name."""

import math
from collections.abc import Callable

import pytest
import timm
import torch
from registered import LOCAL, NAMES, every_model, images, make, make_small, size_of
from timm.layers import set_layer_config
from timm.models import get_notrace_functions, get_notrace_modules
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from unitary_layers import projunn_step, unitary_weights
from unitary_layers.testing import assert_unitary

LEAVES = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
deprecated = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")


def traced(model: nn.Module) -> nn.Module:
    """The model as a graph of torch.fx from the image to its output."""
    train, evaluate = get_graph_node_names(model, tracer_kwargs=LEAVES)
    nodes = {"train_return_nodes": [train[-1]], "eval_return_nodes": [evaluate[-1]]}
    return create_feature_extractor(model, **nodes, tracer_kwargs=LEAVES)


@every_model
def test_default_configuration(name):
    config, model = timm.get_pretrained_cfg(name), make(name, device="meta", num_classes=None)
    names = dict(model.named_parameters())
    assert config.first_conv is None or isinstance(model.get_submodule(config.first_conv), nn.Conv2d)
    assert f"{config.classifier}.weight" in names
    assert model.num_classes == config.num_classes
    assert model.default_cfg["architecture"] == name
    assert model.get_classifier() is model.get_submodule(config.classifier)
    features = make_small(name).eval().forward_features(torch.randn(1, *config.input_size))
    assert tuple(features.shape[2:]) == config.pool_size


@every_model
def test_a_pooling_of_two_numbers_a_channel_is_known_to_the_model(name):
    model, x = make_small(name, global_pool="catavgmax").eval(), images(name)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size) == (2, 2 * model.num_features)
    model.reset_classifier(3, "avg")
    assert model.head_hidden_size == model.num_features


@every_model
def test_head_can_be_replaced_and_left_out(name):
    model, x = make_small(name).eval(), images(name)
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    logits = model.forward_head(features)
    assert torch.equal(model(x), logits)
    assert logits.shape == (2, 5)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(pooled), logits)
    model.reset_classifier(7)
    assert (model(x).shape, model.num_classes) == ((2, 7), 7)
    model.reset_classifier(3, "avg")
    assert torch.allclose(model.forward_head(features, pre_logits=True), features.mean((2, 3)), atol=1e-5)
    model.reset_classifier(0)
    assert (model(x).shape, model.num_classes) == ((2, model.head_hidden_size), 0)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    assert make_small(name, num_classes=0, global_pool="").eval()(x).shape == features.shape


@every_model
def test_other_channels_dropout_and_classes(name):
    model = make_small(name, in_chans=2, drop_rate=0.5)
    x = images(name)[:, :1].expand(-1, 2, -1, -1)
    torch.manual_seed(1)
    first = model(x)
    model.eval()
    assert model.in_chans == 2
    assert model.drop_rate == 0.5
    assert not torch.equal(first, model(x))
    assert torch.equal(model(x), model(x))


@every_model
@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter", "fx"])
def test_features_only(name, kind):
    options = {} if kind == "list" else {"feature_cls": kind}
    extractor, x = make_small(name, features_only=True, num_classes=None, **options).eval(), images(name)
    outputs = extractor(x)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    info = extractor.feature_info
    assert len(outputs) == len(info.channels()) >= 2
    for output, channels, reduction in zip(outputs, info.channels(), info.reduction(), strict=True):
        assert output.shape == (2, channels, *(math.ceil(side / reduction) for side in x.shape[2:]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "orthoresnet_projunn",
            LOCAL | {"depths": (1,) * 5, "widths": (4, 8, 8, 8, 4), "stem_width": 4, "stem_stride": 1},
        ),
        ("orthoresnet_projunn", {"depths": (1,), "widths": (4,), "stem_width": 4, "img_size": 16}),
        ("unirnn_pixel_projunn", {"widths": (2, 3, 4, 5, 6)}),
        ("unirnn_pixel_projunn", {"widths": (2,)}),
        ("unissm_pixel_projunn", {"widths": (2, 3, 4), "block_sizes": (1, 2, 1)}),
    ],
)
def test_features_of_all_stages_of_a_model_of_another_depth(name, options):
    extractor = timm.create_model(name, features_only=True, in_chans=1, **options).eval()
    assert extractor.feature_info.channels() == list(options["widths"])
    assert [output.size(1) for output in extractor(torch.randn(1, 1, 16, 16))] == list(options["widths"])


@every_model
def test_intermediates(name):
    model, x = make_small(name).eval(), images(name)
    final, intermediates = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(intermediates[-1], final)
    assert [t.size(1) for t in intermediates] == [info["num_chs"] for info in model.feature_info]
    chosen = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(chosen[0], intermediates[1])
    assert len(model.forward_intermediates(x, indices=2)[1]) == 2
    with pytest.raises(ValueError, match="expected output_fmt='NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


@every_model
def test_pruning_leaves_what_was_asked_for(name):
    model, x = make_small(name).eval(), images(name)
    _, intermediates = model.forward_intermediates(x)
    assert model.prune_intermediate_layers(indices=[0, 1]) == [0, 1]
    assert torch.equal(model(x), intermediates[1])
    assert (len(model.stages), model.num_features) == (2, intermediates[1].size(1))
    model.reset_classifier(4, "avg")
    assert model(x).shape == (2, 4)
    whole = make_small(name)
    whole.prune_intermediate_layers(indices=1, prune_head=False)
    assert whole.num_classes == 5


@every_model
def test_checkpointing_changes_nothing(name):
    model, x = make_small(name), images(name)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        model.train()(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        assert any(getattr(stage, "grad_checkpointing", False) for stage in model.stages) == enable
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-5 * float(plain.abs().amax()))


@every_model
def test_groups_of_parameters(name):
    model = make_small(name, device="meta")
    names = {n for n, _ in model.named_parameters()}
    for coarse in (True, False):
        groups = group_with_matcher(model.named_parameters(), model.group_matcher(coarse), reverse=True)
        assert set(groups) == names
        assert len(set(groups.values())) >= 3
        assert {groups[name] for name in names if name.startswith("stem.")} == {0}
        assert groups[f"{model.default_cfg['classifier']}.weight"] == max(groups.values())
    optimizer = timm.optim.create_optimizer_v2(make_small(name), "adamw", lr=0.1, layer_decay=0.5)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) >= 3


@every_model
@pytest.mark.parametrize("trace", [traced, torch.fx.symbolic_trace], ids=["features", "plain"])
def test_graphs_of_fx_return_the_same_and_train(name, trace):
    model, x = make_small(name).eval(), images(name)
    graph = trace(model)
    assert torch.equal(_only(graph(x)), model(x))
    _only(graph.train()(x)).mean().backward()
    assert {id(p) for p in graph.parameters()} == {id(p) for p in model.parameters()}
    assert all(p.grad is not None for p in graph.parameters())
    projunn_step(graph)
    assert all(int(weight.count) == 1 for weight in unitary_weights(model))
    assert_unitary(model)


@every_model
@deprecated
@pytest.mark.parametrize("prepare", [lambda m: m, traced], ids=["module", "graph"])
def test_torchscript(name, prepare: Callable[[nn.Module], nn.Module]):
    with set_layer_config(scriptable=True):
        model, x = make_small(name).eval(), images(name)
    with torch.no_grad():
        expected, found = model(x), _only(torch.jit.script(prepare(model))(x))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().amax()))


def _only(output: Tensor | dict[str, Tensor]) -> Tensor:
    return next(iter(output.values())) if isinstance(output, dict) else output


@every_model
def test_input_size_where_it_is_free(name):
    model = make_small(name).eval()
    height, width = size_of(name)[1:]
    other = torch.randn(1, model.in_chans, 2 * height, width)
    if timm.get_pretrained_cfg(name).fixed_input_size:
        with pytest.raises(ValueError, match=rf"expected input_size=\({height}, {width}\).* got input of size"):
            model(other)
        with pytest.raises(ValueError, match="which full support fixes"):
            model.set_input_size((2 * height, width))
        model.set_input_size(height)
        assert make_small(name, img_size=16)(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    else:
        assert model(other).shape == (1, 5)


def test_set_input_size_of_a_local_model():
    model = make("orthoresnet_projunn", **LOCAL)
    model.set_input_size((64, 96))
    with pytest.raises(ValueError, match=r"expected sides in multiples of 32, got \(40, 64\)"):
        model.set_input_size((40, 64))


@pytest.mark.parametrize("name", [name for name in NAMES if "pixel" in name])
@pytest.mark.parametrize("training", [True, False])
def test_hooks_of_stages_and_of_their_layers_are_called(name, training):
    model, called = make_small(name).train(training), []
    waiting = {"stages": model.stages, **{f"stages.{i}": stage for i, stage in enumerate(model.stages)}}
    waiting |= {f"stages.{i}.{n}": m for i, stage in enumerate(model.stages) for n, m in stage.named_children()}
    for place, module in waiting.items():
        module.register_forward_hook(lambda *_, place=place: called.append(place))
        model(images(name))
        assert place in called
        called.clear()
        module._forward_hooks.clear()  # one at a time: a model must not mind the others alone


@pytest.mark.parametrize("name", [name for name in NAMES if "pixel" in name])
def test_hooks_see_in_training_what_they_see_in_evaluation(name):
    model, x = make_small(name), images(name)
    for place, module in model.named_modules():
        seen = [[], []]
        for training in (True, False):
            shapes = seen[training]
            hook = module.register_forward_hook(
                lambda _, *given, to=shapes: to.append([t.shape for t in tree_leaves(given) if isinstance(t, Tensor)])
            )
            model.train(training)(x)
            hook.remove()
        assert seen[0] == seen[1], place
