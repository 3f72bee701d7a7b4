"""UpdateRule: a validated value, the only place of the learning rate, and the key of the random numbers."""

import copy
import dataclasses
import pickle

import pytest
import torch

from unitary_layers import UpdateRule
from unitary_layers.linalg import haar_unitary
from unitary_layers.projunn import DenseGradient, projunn_d, projunn_t
from unitary_layers.projunn.noise import noise

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "X"}, r"variant to be one of \('D', 'T'\), got 'X'"),
        ({"variant": None}, "variant"),
        ({"sampler": "best"}, "sampler to be one of .*'lsi'.*, got 'best'"),
        ({"nonfinite": "ignore"}, r"nonfinite to be one of \('raise', 'skip'\), got 'ignore'"),
        ({"rank": 0}, "rank to be an integer of at least 1 or 'auto', got 0"),
        ({"rank": 1.5}, "rank to be an integer of at least 1 or 'auto', got 1.5"),
        ({"rank": "half"}, "rank to be an integer of at least 1 or 'auto', got 'half'"),
        ({"direction": "plain"}, r"direction to be one of \('spectral', 'gradient'\), got 'plain'"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\), got 1.0"),
        ({"momentum": 0.9, "direction": "gradient"}, 'expected direction="spectral" with a momentum'),
        ({"rank": True}, "rank to be an integer"),
        ({"rank": None}, "rank to be an integer"),
        ({"lr": 10**400}, "lr to be a finite number of at least 0, got 1000"),
        ({"seed": -1}, "seed to be an integer of at least 0, got -1"),
        ({"retract_every": -5}, "retract_every to be an integer of at least 0 or None, got -5"),
        ({"lr": -1e-3}, "lr to be a finite number of at least 0, got -0.001"),
        ({"lr": float("nan")}, "lr to be a finite number"),
        ({"lr": float("inf")}, "lr to be a finite number"),
        ({"lr": "fast"}, "lr to be a finite number"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UpdateRule(**options)


def test_a_rule_is_a_value():
    rule = UpdateRule("D", 2, "power", 0.1)
    assert (rule.variant, rule.rank, rule.sampler, rule.lr) == ("D", 2, "power", 0.1)
    assert rule == UpdateRule("D", 2, "power", 0.1)
    assert len({rule, UpdateRule("D", 2, "power", 0.1), rule.with_lr(0.2)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.lr = 1.0


@pytest.mark.parametrize(("variant", "function"), [("D", projunn_d), ("T", projunn_t)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_change_is_a_step_against_the_sampled_gradient(variant, function, dtype):
    rule = UpdateRule(variant, rank=3, lr=0.2, direction="gradient")
    w, g = haar_unitary(6, dtype=dtype), torch.randn(6, 6, dtype=dtype)
    sample = rule.sample(DenseGradient(g), [(0, 0)])
    change = rule.change(w, sample)
    torch.testing.assert_close(w + change.matrix(), function(w, -0.2 * sample.left, sample.right))


def test_a_step_goes_down():
    # loss = Re tr(A^H W), whose gradient is A, real and complex: a wrong sign or conjugation goes up
    for dtype in (torch.float64, torch.complex128):
        for variant in ("D", "T"):
            w, a = haar_unitary(5, dtype=dtype), torch.randn(5, 5, dtype=dtype)
            rule = UpdateRule(variant, rank=5, sampler="svd", lr=1e-3, direction="gradient")
            change = rule.change(w, rule.sample(DenseGradient(a), [(0, 0)]))
            tangent = (a - w @ a.mH @ w) / 2
            went = (a.conj() * change.matrix()).sum().real
            torch.testing.assert_close(went, -1e-3 * tangent.abs().square().sum(), rtol=0.02, atol=0)


def test_a_pickled_rule_of_an_older_release_is_loaded_or_refused():
    """Such a rule has two options that are gone; see GONE of the states."""
    rule = UpdateRule("D", rank=2, direction="gradient")
    older = copy.copy(rule)
    older.__dict__.update(precondition=False, alpha=0.99)
    loaded = pickle.loads(pickle.dumps(older))
    assert loaded == rule
    assert vars(loaded) == vars(rule)
    older.__dict__.update(precondition=True)
    with pytest.raises(ValueError, match="expected a rule without precondition=True, which is gone"):
        pickle.loads(pickle.dumps(older))


def drawn(rule: UpdateRule, keys: list[tuple[int, int]], *shape: int) -> torch.Tensor:
    return noise(torch.Tensor.normal_, shape, torch.empty(0), rule.streams(keys, CPU))


def test_a_sample_needs_what_its_direction_looks_at():
    with pytest.raises(ValueError, match="expected the weight for a rule with direction="):
        UpdateRule().sample(DenseGradient(torch.eye(3)), [(0, 0)])


def test_random_numbers_are_a_function_of_the_key():
    def draw(seed: int, index: int, count: int) -> tuple[float, ...]:
        return tuple(drawn(UpdateRule(seed=seed), [(index, count)], 4).tolist())

    keys = [(s, i, c) for s in (0, 1, 2**40) for i in (0, 1, 2) for c in (0, 1, 2, 3)]
    draws = {draw(*key) for key in keys}
    assert len(draws) == len(keys)  # (0, 1, 0) is not (1, 0, 0), and high bits of the seed count
    assert draw(0, 1, 2) == draw(0, 1, 2)


def test_random_numbers_of_a_weight_do_not_depend_on_its_company():
    rule, keys = UpdateRule(seed=3), [(0, 5), (4, 1), (7, 0)]
    together = drawn(rule, keys, 3, 2, 20)
    assert all(torch.equal(entry, drawn(rule, [key], 2, 20)) for entry, key in zip(together, keys, strict=True))


def test_consecutive_steps_are_uncorrelated():
    draws = torch.stack([drawn(UpdateRule(), [(0, c)], 50) for c in range(200)])
    correlation = (draws[1:] * draws[:-1]).mean()
    assert abs(correlation) < 4 / (199 * 50) ** 0.5


def test_period_of_retraction():
    assert UpdateRule().retract_period(64) == 1000
    assert UpdateRule().retract_period(4096) == 4096
    assert UpdateRule(retract_every=7).retract_period(64) == 7
    assert UpdateRule(retract_every=0).retract_period(64) == 0
