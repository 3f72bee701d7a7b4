"""What torch's loops say of ``.grad`` means the same for a factored gradient as for a dense one."""

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from closeness import assert_rounding
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD

from unitary_layers import OrthogonalConv2d, ProjUNN, UnitaryLinear, UnitaryRNN, UpdateRule, attach, projunn_step
from unitary_layers.training import unitary_weights
from unitary_layers.training.collected import FactoredGrad

N, ROWS, REAL = 8, 5, torch.float64
EXACT = UpdateRule(rank=N, lr=0.1, direction="gradient")  # at full rank a sample is the gradient
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], torch.dtype]] = {
    "linear": (lambda **o: UnitaryLinear(N, N, **o), (ROWS, N), REAL),
    "complex": (lambda **o: UnitaryLinear(N, 5, **o), (ROWS, N), torch.complex128),
    "rnn": (lambda **o: UnitaryRNN(3, N, nonlinearity="relu", **o), (4, ROWS, 3), REAL),
    "conv": (lambda **o: OrthogonalConv2d(4, 4, input_size=(3, 4), **o), (ROWS, 4, 3, 4), REAL),
}
every_layer = pytest.mark.parametrize(("build", "shape", "dtype"), LAYERS.values(), ids=LAYERS)


class Loop:
    """A network of one layer in a plain container, its optimiser, and losses."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.net, self.shape, self.dtype = net, shape, dtype
        self.optimizer = SGD(net.parameters(), lr=0.05)
        attach(net, self.optimizer)

    def loss(self, seed: int) -> Tensor:
        y = self.net(torch.randn(self.shape, dtype=self.dtype, generator=torch.Generator().manual_seed(seed)))
        y = torch.cat([part.flatten() for part in y]) if isinstance(y, tuple) else y
        weights = torch.linspace(-1, 1, y.numel(), dtype=REAL).reshape(y.shape)
        return (y * weights).sum().abs().square() + (y.abs() ** 3).sum()

    def backward(self, seed: int) -> None:
        self.loss(seed).backward()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.net.parameters())

    @property
    def weights(self) -> list[nn.Parameter]:
        return [weight.parameter for weight in unitary_weights(self.net)]


def forgetting(forget: Callable[[Loop], object]) -> Callable[[Loop], object]:
    """Two backward passes of which the first is forgotten, and a step; then one that has nothing but what is left."""

    def idiom(loop: Loop) -> None:
        loop.backward(1)
        forget(loop)
        loop.backward(2)
        loop.optimizer.step()
        loop.backward(3)
        forget(loop)
        loop.optimizer.step()

    return idiom


def changing(change: Callable[[Loop], object]) -> Callable[[Loop], object]:
    """Something that is done to the gradients of two backward passes, and the third added to that."""

    def idiom(loop: Loop) -> object:
        loop.backward(1)
        loop.backward(2)
        result = change(loop)
        loop.backward(3)
        loop.optimizer.step()
        return result

    return idiom


def one_by_one(loop: Loop, change: Callable[[nn.Parameter], object]) -> None:
    for parameter in loop.parameters:
        change(parameter)


def none(parameter: nn.Parameter) -> None:
    parameter.grad = None


def halved(parameter: nn.Parameter) -> None:
    parameter.grad = parameter.grad * 0.5


def divided(parameter: nn.Parameter) -> None:
    parameter.grad /= 3.0


def given(parameter: nn.Parameter) -> None:
    parameter.grad = torch.ones_like(parameter)


def without_parameters(loop: Loop) -> list[Tensor]:
    loop.net.requires_grad_(False)
    loop.optimizer.step()
    loop.net.requires_grad_(True)
    return [parameter.detach().clone() for parameter in loop.parameters]


def asked_for(loop: Loop) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loop.loss(5), loop.parameters)


def for_weights_alone(loop: Loop) -> None:
    loop.loss(5).backward(inputs=loop.weights)


def twice_in_one_graph(loop: Loop) -> None:
    (loop.loss(5) + loop.loss(6)).backward()


def penalised(loop: Loop) -> None:
    (loop.loss(5) + sum(weight.square().sum() * weight.sum() for weight in loop.weights)).backward()


def hooked(loop: Loop) -> None:
    handles = [weight.register_hook(lambda gradient: gradient * 0.5) for weight in loop.weights]
    loop.backward(5)
    for handle in handles:
        handle.remove()


def projected(loop: Loop) -> None:
    """As PCGrad does with the gradients of two tasks."""
    first = [parameter.grad for parameter in loop.parameters]
    loop.net.zero_grad()
    loop.backward(5)
    for parameter, old in zip(loop.parameters, first, strict=True):
        inner = (parameter.grad * old).sum()
        parameter.grad = parameter.grad + old - inner * old / old.square().sum()


def unscaled(loop: Loop) -> None:
    """By a scaler that the layers do not know."""
    loop.net.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(loop.loss(5)).backward()
    scaler.unscale_(loop.optimizer)


def measured(loop: Loop) -> list[object]:
    return [torch.stack([p.grad.norm(), p.grad.abs().amax(), (p.grad > 0).sum().double()]) for p in loop.parameters]


IDIOMS: dict[str, Callable[[Loop], object]] = {
    "zero_grad of a container": forgetting(lambda loop: loop.net.zero_grad()),
    "zero_grad of a container to zeros": forgetting(lambda loop: loop.net.zero_grad(set_to_none=False)),
    "zero_grad of a layer": forgetting(lambda loop: loop.net[0].zero_grad()),
    "zero_grad of the optimiser": forgetting(lambda loop: loop.optimizer.zero_grad()),
    "zero_grad of the optimiser to zeros": forgetting(lambda loop: loop.optimizer.zero_grad(set_to_none=False)),
    "zero_grad of another optimiser": forgetting(lambda loop: SGD(loop.parameters).zero_grad()),
    "zero_grad of many at once": forgetting(lambda loop: SGD(loop.parameters, foreach=True).zero_grad(False)),
    "zero_grad of ProjUNN": forgetting(lambda loop: ProjUNN(loop.parameters).zero_grad()),
    "None": forgetting(lambda loop: one_by_one(loop, none)),
    "zero_": forgetting(lambda loop: one_by_one(loop, lambda p: p.grad.zero_())),
    "zero_ of data": forgetting(lambda loop: one_by_one(loop, lambda p: p.grad.data.zero_())),
    "accumulation": changing(lambda loop: None),
    "frozen between": changing(without_parameters),
    "autograd.grad": changing(asked_for),
    "inputs": changing(for_weights_alone),
    "two uses": changing(twice_in_one_graph),
    "a penalty": changing(penalised),
    "a hook": changing(hooked),
    "clip_grad_norm_": changing(lambda loop: clip_grad_norm_(loop.parameters, 0.01)),
    "clip_grad_norm_ of one": changing(lambda loop: [clip_grad_norm_(p, 0.01, 1.0) for p in loop.parameters]),
    "clip_grad_norm_ of many at once": changing(lambda loop: clip_grad_norm_(loop.parameters, 0.01, foreach=True)),
    "clip_grad_value_": changing(lambda loop: clip_grad_value_(loop.parameters, 0.01)),
    "adaptive_clip_grad": changing(lambda loop: adaptive_clip_grad(loop.parameters)),
    "mul_": changing(lambda loop: one_by_one(loop, lambda p: p.grad.mul_(0.5))),
    "divided in place": changing(lambda loop: one_by_one(loop, divided)),
    "halved": changing(lambda loop: one_by_one(loop, halved)),
    "given": changing(lambda loop: one_by_one(loop, given)),
    "a row set": changing(lambda loop: one_by_one(loop, lambda p: p.grad[0].zero_())),
    "a view scaled": changing(lambda loop: one_by_one(loop, lambda p: p.grad.view(-1)[1:5].mul_(3))),
    "parts scaled": changing(lambda loop: one_by_one(loop, lambda p: p.grad.chunk(2)[0].mul_(0.5))),
    "transposed and written": changing(
        lambda loop: one_by_one(loop, lambda p: p.grad.movedim(0, -1)[..., 0].fill_(0.1))
    ),
    "a view read": changing(lambda loop: [p.grad[0].clone() for p in loop.parameters]),
    "clone": changing(lambda loop: [p.grad.clone() for p in loop.parameters]),
    "deepcopy": changing(lambda loop: [copy.deepcopy(p.grad) for p in loop.parameters]),
    "measured": changing(measured),
    "projected": changing(projected),
    "unscale_": changing(unscaled),
}


@every_layer
@pytest.mark.parametrize("idiom", IDIOMS.values(), ids=IDIOMS)
def test_an_idiom_means_the_same(build, shape, dtype, idiom):
    torch.manual_seed(0)
    dense = nn.Sequential(build(dtype=dtype, update=EXACT))
    factored = nn.Sequential(build(dtype=dtype, update=EXACT, gradient="factored"))
    factored.load_state_dict(dense.state_dict())
    start = copy.deepcopy(dense.state_dict())
    results = [idiom(Loop(net, shape, dtype)) for net in (dense, factored)]
    for name, tensor in factored.state_dict().items():
        assert_rounding(tensor.double(), dense.state_dict()[name].double(), n=1000 * N * N)
        assert not torch.equal(tensor, start[name])
    if results[0] is not None:
        for mine, theirs in zip(*([r] if isinstance(r, Tensor) else r for r in results), strict=True):
            assert_rounding(mine.double(), theirs.double(), n=1000 * N * N)


def factored(**options: object) -> UnitaryLinear:
    return UnitaryLinear(N, N, gradient="factored", **options)


@pytest.mark.parametrize("foreach", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("rule", [{}, {"direction": "gradient"}], ids=["spectral", "gradient"])
def test_what_scales_and_zeroes_keeps_the_factors_thin(rule, foreach):
    layer = factored(update=UpdateRule(rank=2, **rule))
    for _ in range(2):
        layer(torch.randn(ROWS, N)).square().sum().backward()
        version = layer.bias.grad._version
        clip_grad_norm_(layer.parameters(), 0.1, foreach=foreach)
        assert layer.bias.grad._version > version
        content = layer.weight.grad.content
        assert content.kept is None
        assert content.low_rank.rank <= 4
        assert_rounding(layer.weight.grad.norm(), content.low_rank.matrix().norm(), n=N)
        SGD(layer.parameters(), foreach=foreach).zero_grad(set_to_none=False)
    assert layer.weight.grad.count_nonzero() == 0
    assert layer.bias.grad.count_nonzero() == 0


def test_it_says_what_it_is():
    layer = factored(update=UpdateRule(rank=2, direction="gradient"))
    layer(torch.randn(ROWS, N)).sum().backward()
    assert repr(layer.weight.grad) == f"FactoredGrad({(N, N)}, rank=2)"
    assert isinstance(layer.weight.grad, FactoredGrad)
    assert layer.weight.grad.share_memory_().content.low_rank.left.is_shared()
    copied = pickle.loads(pickle.dumps(layer.weight.grad))
    assert torch.equal(copied, layer.weight.grad)
    storage = layer.weight.grad.untyped_storage()
    assert storage.nbytes() == 4 * N * N
    with pytest.raises(NotImplementedError, match="meta"):  # of a storage of torch's own it would crash
        storage[0]


@pytest.mark.parametrize("kind", [SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=["one", "many"])
def test_an_optimiser_that_was_never_attached_does_as_with_a_dense_gradient(kind, options):
    dense, thin = UnitaryLinear(N, N, update=EXACT), factored(update=EXACT)
    thin.load_state_dict(dense.state_dict())
    for layer in (dense, thin):
        optimizer = kind(layer.parameters(), lr=0.01, **options)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for seed in range(3):
                layer(torch.randn(ROWS, N, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        (message,) = found  # of all three steps
        assert "was not attached" in str(message.message)
    assert_rounding(thin.weight, dense.weight, n=1000 * N * N)


def test_the_generator_of_a_gan_leaves_nothing_in_its_critic():
    """The loop of DCGAN, which zeroes the critic's gradients by the container's method."""
    nets = []
    for gradient in ("dense", "factored"):
        torch.manual_seed(0)
        generator, critic = (
            nn.Sequential(UnitaryLinear(N, N, gradient=gradient, update=EXACT), nn.Linear(N, N)) for _ in range(2)
        )
        for _ in range(3):
            critic.zero_grad()
            (critic(torch.randn(ROWS, N)).mean() - critic(generator(torch.randn(ROWS, N)).detach()).mean()).backward()
            projunn_step(critic)
            generator.zero_grad()
            critic(generator(torch.randn(ROWS, N))).square().mean().backward()
            projunn_step(generator)
        nets.append(nn.ModuleList([generator, critic]))
    for mine, theirs in zip(*(net.parameters() for net in nets), strict=True):
        assert_rounding(mine, theirs, n=1000 * N * N)
