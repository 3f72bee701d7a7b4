"""Shapes, targets and baselines of the tasks."""

import math

import pytest
import torch
from common.images import load_digits
from common.tasks import AddingProblem, CopyingMemory, PixelSequence, Task
from torch import Tensor


def pictures(count: int = 12, height: int = 3, width: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Images whose pixels are all different, and their labels."""
    images = torch.arange(count * height * width, dtype=torch.float32).reshape(count, height, width)
    return images, torch.arange(count) % classes


def pixels(**options: object) -> PixelSequence:
    return PixelSequence(**{"batch_size": 5, "train": pictures(), "test": pictures(7)} | options)


TASKS = {
    "copying": lambda seed: CopyingMemory(delay=7, batch_size=5, seed=seed),
    "adding": lambda seed: AddingProblem(length=9, batch_size=5, seed=seed),
    "pixels": lambda seed: pixels(seed=seed),
}


@pytest.mark.parametrize("name", TASKS)
def test_batch_is_a_function_of_seed_and_step(name: str) -> None:
    task, again, other = TASKS[name](1), TASKS[name](1), TASKS[name](2)
    again.batch(0)  # whatever was drawn before
    torch.rand(3)
    for first, second in zip(task.batch(3), again.batch(3), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(task.batch(3)[0], task.batch(4)[0])
    assert not torch.equal(task.batch(3)[0], other.batch(3)[0])


@pytest.mark.parametrize("name", TASKS)
def test_shapes_and_dtypes(name: str) -> None:
    task = TASKS[name](0)
    inputs, targets = task.batch(0)
    assert inputs.shape[1:] == (5, task.input_size)
    assert inputs.dtype == torch.float32
    leading = inputs.shape[:2] if task.every_step else inputs.shape[1:2]
    outputs = torch.zeros(*leading, task.output_size)
    for figure in (task.loss(outputs, targets), task.accuracy(outputs, targets)):
        assert figure.shape == ()
        assert figure.isfinite()


def test_copying_repeats_the_symbols_after_the_delimiter() -> None:
    task = CopyingMemory(delay=7, batch_size=5)
    inputs, targets = task.tokens(0)
    blank, delimiter = 8, 9
    assert inputs.shape == targets.shape == (27, 5)
    assert inputs[:10].max() < 8
    assert torch.equal(targets[-10:], inputs[:10])
    assert (targets[:-10] == blank).all()
    assert (inputs[16] == delimiter).all()
    assert (inputs[10:16] == blank).all()
    assert (inputs[17:] == blank).all()
    onehot, _ = task.batch(0)
    assert torch.equal(onehot.argmax(-1), inputs)
    assert torch.equal(onehot.sum(-1), torch.ones(27, 5))


@pytest.mark.parametrize(("delay", "rounded"), [(1000, 0.02039), (2000, 0.01029), (100, 0.1733)])
def test_best_memoryless_predictor_of_copying_gets_exactly_the_baseline(delay: int, rounded: float) -> None:
    task = CopyingMemory(delay=delay, batch_size=3)
    _, targets = task.batch(0)
    outputs = torch.full((delay + 20, 3, 10), -math.inf, dtype=torch.float64)
    outputs[:-10, :, 8] = 0  # certain of the blank
    outputs[-10:, :, :8] = 0  # any of the eight symbols
    assert task.loss(outputs, targets).item() == pytest.approx(task.baseline, rel=1e-12)
    assert task.baseline == pytest.approx(rounded, abs=1e-5 if delay > 100 else 1e-4)


def test_copying_accuracy_counts_the_recalled_symbols_alone() -> None:
    task = CopyingMemory(delay=7, batch_size=5)
    _, targets = task.tokens(0)
    right = torch.nn.functional.one_hot(targets, 10).float()
    assert task.accuracy(right, targets) == 1
    wrong_blanks = right.clone()
    wrong_blanks[:-10] = 0
    assert task.accuracy(wrong_blanks, targets) == 1
    half = right.clone()
    half[-5:] = torch.nn.functional.one_hot((targets[-5:] + 1) % 8, 10).float()
    assert task.accuracy(half, targets) == 0.5


@pytest.mark.parametrize("length", [2, 3, 10])
def test_adding_marks_one_number_in_each_half_and_asks_for_their_sum(length: int) -> None:
    task = AddingProblem(length=length, batch_size=200)
    inputs, targets = task.batch(0)
    values, marks = inputs.unbind(-1)
    assert torch.equal(marks[: length // 2].sum(0), torch.ones(200))
    assert torch.equal(marks[length // 2 :].sum(0), torch.ones(200))
    assert set(marks.unique().tolist()) <= {0.0, 1.0}
    assert (marks.sum(1) > 0).all(), "every place is marked now and then"
    assert values.min() >= 0
    assert values.max() < 1
    torch.testing.assert_close((values * marks).sum(0)[:, None], targets, rtol=0, atol=1e-6)


def test_always_answering_one_gets_the_baseline_of_adding() -> None:
    count = 20_000
    task = AddingProblem(length=4, batch_size=count)
    _, targets = task.batch(0)
    standard_error = math.sqrt((1 / 15 - 1 / 36) / count)  # of (s - 1)^2, s the sum of two uniform numbers
    assert task.loss(torch.ones(count, 1), targets).item() == pytest.approx(1 / 6, abs=4 * standard_error)
    assert task.baseline == 1 / 6


def test_adding_accuracy_counts_errors_below_004() -> None:
    task = AddingProblem(length=4, batch_size=4)
    off = torch.tensor([[0.0], [0.039], [-0.039], [0.041]])
    assert task.accuracy(off, torch.zeros(4, 1)) == 0.75


def test_held_out_batches_are_fixed_and_not_for_training() -> None:
    task = CopyingMemory(delay=2, batch_size=4)
    held_out = [inputs for inputs, _ in task.test_batches()]
    assert len(held_out) > 1
    assert all(torch.equal(a, b) for a, (b, _) in zip(held_out, task.test_batches(), strict=True))
    assert not any(torch.equal(a, task.batch(step)[0]) for a in held_out for step in range(50))


def test_pixels_come_one_a_step_and_scaled() -> None:
    task = pixels(largest=143)
    inputs, labels = task.batch(0)
    assert inputs.shape == (12, 5, 1)
    images = (inputs.squeeze(-1).T * 143).round().long()
    first = images[:, 0] // 12  # pixels are numbered through, so the first tells which image it is
    assert torch.equal(images, first[:, None] * 12 + torch.arange(12))
    assert torch.equal(labels, first % 3)
    assert task.loss(torch.zeros(5, 3), labels).item() == pytest.approx(task.baseline, rel=1e-6)


def test_order_of_pixels_is_one_permutation_whatever_the_seed() -> None:
    first, second = pixels(permute=True, seed=0, largest=1), pixels(permute=True, seed=7, largest=1)
    assert torch.equal(first.order, second.order)
    assert torch.equal(first.order.sort().values, torch.arange(12))
    assert not torch.equal(first.order, torch.arange(12))
    (permuted, _), (plain, _) = next(first.test_batches()), next(pixels(largest=1).test_batches())
    assert torch.equal(permuted, plain[first.order])


def test_epoch_visits_images_once_in_a_new_order() -> None:
    task = pixels(largest=1)
    assert task.eval_every == 2
    epochs = [torch.cat([task.batch(2 * epoch + i)[0][0, :, 0] for i in range(2)]) for epoch in range(2)]
    for visited in epochs:
        assert len(visited.unique()) == 10
    assert not torch.equal(*epochs)


def test_held_out_images_are_all_there_in_order() -> None:
    batches = list(pixels(test=pictures(1500)).test_batches())
    assert [inputs.shape[1] for inputs, _ in batches] == [1000, 500]
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(1500) % 3)


def test_digits_are_split_80_to_20_always_alike() -> None:
    digits, again = load_digits(), load_digits()
    (images, labels), (held_out, held_out_labels) = digits["train"], digits["test"]
    assert images.shape == (1437, 8, 8)
    assert held_out.shape == (360, 8, 8)
    assert images.max() == digits["largest"] == 16
    assert set(labels.tolist()) == set(held_out_labels.tolist()) == set(range(10))
    assert torch.equal(held_out, again["test"][0])
    together = torch.cat((images, held_out)).flatten(1)
    assert len(together.unique(dim=0)) == len(together), "no digit is in both"


BAD = {
    "batch_size": lambda: CopyingMemory(delay=3, batch_size=0),
    "delay": lambda: CopyingMemory(delay=0, batch_size=2),
    "symbols": lambda: CopyingMemory(symbols=0, batch_size=2),
    "length": lambda: AddingProblem(length=1, batch_size=2),
    "at most the 12 training images, got 13": lambda: pixels(batch_size=13),
}


@pytest.mark.parametrize("match", BAD)
def test_impossible_tasks_are_refused(match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BAD[match]()


def test_task_is_an_interface() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Task(batch_size=1)


def test_gain_is_the_largest_grey_value() -> None:
    plain, strong = pixels(largest=143), pixels(largest=143, gain=10.0)
    torch.testing.assert_close(strong.batch(0)[0], 10 * plain.batch(0)[0])
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="gain must be positive and finite, got"):
            pixels(gain=bad)


def test_numbers_to_add_are_centred_and_their_sum_is_not() -> None:
    (plain, total), (centred, same) = (AddingProblem(length=9, batch_size=5, centre=c).batch(2) for c in (0.0, 0.5))
    torch.testing.assert_close(centred, plain - torch.tensor([0.5, 0.0]))
    assert torch.equal(total, same)
    with pytest.raises(ValueError, match="centre must be finite, got nan"):
        AddingProblem(length=9, batch_size=5, centre=math.nan)
