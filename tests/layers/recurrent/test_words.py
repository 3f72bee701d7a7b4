"""Words as unitary matrices: the loop that they stand for, phrases, padding, packed sentences, and what is refused."""

import math
import warnings

import pytest
import torch
from closeness import assert_rounding
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unitary_layers import UnitaryWordRNN, unitarity_error
from unitary_layers.testing import assert_unitary

V, N, STEPS, BATCH = 7, 8, 9, 4
KINDS = [(words, dtype) for words in ("full", "lowrank") for dtype in (torch.float64, torch.complex128)]
every_kind = pytest.mark.parametrize(("words", "dtype"), KINDS, ids=[f"{w}-{d.is_complex}" for w, d in KINDS])


def make(words: str = "full", dtype: torch.dtype = torch.float64, **options: object) -> UnitaryWordRNN:
    return UnitaryWordRNN(V, N, dtype=dtype, words=words, init="haar", **options)


def sentences(seed: int = 0) -> Tensor:
    return torch.randint(V, (STEPS, BATCH), generator=torch.Generator().manual_seed(seed))


def slow(matrices: Tensor, ids: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The loop of the docstring, a word and a sentence at a time, of matrices ``(V, n, n)``."""
    output = []
    for step in ids:
        h = torch.stack([matrices[int(word)] @ state for word, state in zip(step, h, strict=True)])
        output.append(h)
    return torch.stack(output), h


def exponentials(planes: Tensor) -> Tensor:
    a, b = planes.mT.unbind(1)
    return torch.linalg.matrix_exp(a @ b.mH - b @ a.mH)


@every_kind
def test_states_and_gradients_are_those_of_the_loop(words, dtype):
    rnn, ids = make(words, dtype), sentences()
    h_0 = torch.randn(1, BATCH, N, dtype=dtype, requires_grad=True)
    output, h_n = rnn(ids, h_0)
    stored = rnn.weight if words == "full" else rnn.planes
    value = torch.view_as_complex(stored) if dtype.is_complex else stored
    expected, last = slow(value if words == "full" else exponentials(value), ids, h_0[0])
    assert_rounding(output, expected, n=STEPS * N)
    assert_rounding(h_n[0], last, n=STEPS * N)
    target = torch.randn(output.shape, dtype=dtype)
    losses = [(y - target).abs().square().sum() + 2 * h.real.sum() for y, h in ((output, h_n), (expected, last))]
    found, twin = (torch.autograd.grad(loss, (stored, h_0)) for loss in losses)
    for mine, theirs in zip(found, twin, strict=True):
        assert_rounding(mine, theirs, n=10 * STEPS * N)


@pytest.mark.parametrize("words", ["full", "lowrank"])
@pytest.mark.parametrize("used", [0, 1], ids=["output", "h_n"])
def test_gradients_of_one_of_the_results(words, used):
    rnn, ids = make(words), sentences()
    parameter = next(rnn.parameters())
    start = torch.full((BATCH, N), N**-0.5, dtype=torch.float64)
    expected = slow(rnn.word_matrix(torch.arange(V)), ids, start)
    (found,) = torch.autograd.grad(rnn(ids)[used].pow(3).sum(), parameter)
    (twin,) = torch.autograd.grad(expected[used].pow(3).sum(), parameter)
    assert_rounding(found, twin, n=10 * STEPS * N)


@every_kind
def test_words_are_unitary_and_states_keep_their_norm(words, dtype):
    rnn = make(words, dtype)
    assert unitarity_error(rnn.word_matrix(torch.arange(V)).detach()).amax() <= 40 * N * torch.finfo(dtype).eps
    _, h_n = rnn(sentences())
    assert_rounding(torch.linalg.vector_norm(h_n, dim=-1), torch.ones(1, BATCH, dtype=torch.float64), n=STEPS * N)


@pytest.mark.parametrize("words", ["full", "lowrank"])
def test_a_sentence_of_a_hundred_thousand_words_keeps_the_norm(words):
    rnn, steps = make(words), 100_000
    ids = torch.randint(V, (400, 250), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        h = torch.full((1, N), N**-0.5, dtype=torch.float64)
        phrases = rnn.phrase_matrix(ids)  # the same words, many phrases at once
        for phrase in phrases:
            h = h @ phrase.mT
    assert abs(float(torch.linalg.vector_norm(h)) - 1) <= 4 * N * steps * torch.finfo(torch.float64).eps


@every_kind
def test_a_phrase_is_the_product_of_its_words_the_first_rightmost(words, dtype):
    rnn = make(words, dtype)
    a, b = torch.tensor([1, 5, 5]), torch.tensor([2, 0])
    product = rnn.word_matrix(5) @ rnn.word_matrix(5) @ rnn.word_matrix(1)
    assert_rounding(rnn.phrase_matrix(a), product, n=N)
    assert_rounding(rnn.phrase_matrix(torch.cat([a, b])), rnn.phrase_matrix(b) @ rnn.phrase_matrix(a), n=N)
    many = rnn.phrase_matrix(torch.stack([a, a.flip(0)], dim=1))
    assert_rounding(many[0], rnn.phrase_matrix(a), n=N)
    assert_rounding(many[1], rnn.phrase_matrix([5, 5, 1]), n=N)
    assert torch.equal(rnn.phrase_matrix([]), torch.eye(N, dtype=dtype))
    state = torch.randn(1, 1, N, dtype=dtype)
    assert_rounding(rnn(a.unsqueeze(1), state)[1][0, 0], rnn.phrase_matrix(a) @ state[0, 0], n=N)
    assert rnn.word_matrix(torch.tensor([[1, 2, 3]])).shape == (1, 3, N, N)


@every_kind
def test_padding_is_the_identity_and_stays_it(words, dtype):
    rnn = make(words, dtype, padding_idx=-1)
    assert rnn.padding_idx == V - 1
    eye = torch.eye(N, dtype=dtype)
    ids = torch.cat([sentences(), torch.full((3, BATCH), V - 1)])
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    for _ in range(3):
        assert torch.equal(rnn.word_matrix(V - 1), eye)
        output, h_n = rnn(ids)
        assert torch.equal(output[STEPS - 1], h_n[0])
        (output - 1).abs().square().sum().backward()
        rnn.projunn_step()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(rnn.word_matrix(V - 1), eye)
    rnn.retract_()
    assert torch.equal(rnn.word_matrix(V - 1), eye)
    rnn.reset_parameters()
    assert torch.equal(rnn.word_matrix(V - 1), eye)


@every_kind
def test_padding_has_no_gradient_under_transforms_either(words, dtype):
    rnn, ids = make(words, dtype, padding_idx=0), torch.tensor([[1], [0], [2]])
    parameters = dict(rnn.named_parameters())

    def loss(parameters):
        return (torch.func.functional_call(rnn, parameters, (ids,))[1] - 1).abs().square().sum()

    found = torch.func.grad(loss)(parameters)
    (rnn(ids)[1] - 1).abs().square().sum().backward()
    for name, parameter in parameters.items():
        assert not found[name][0].any()
        assert found[name][1].any()
        assert_rounding(found[name], parameter.grad, n=100)


@pytest.mark.parametrize("words", ["full", "lowrank"])
def test_packed_sentences_are_each_for_itself(words):
    rnn, ids, lengths = make(words), sentences(), torch.tensor([4, 9, 1, 6])
    h_0 = torch.randn(1, BATCH, N, dtype=torch.float64)
    packed, h_n = rnn(pack_padded_sequence(ids, lengths, enforce_sorted=False), h_0)
    output, found = pad_packed_sequence(packed)
    assert found.tolist() == lengths.tolist()
    parameter = next(rnn.parameters())
    mine, total = torch.autograd.grad(output.pow(3).sum(), parameter)[0], 0
    for i, length in enumerate(lengths):
        alone, last = rnn(ids[:length, i], h_0[:, i])
        assert_rounding(output[:length, i], alone, n=N)
        assert_rounding(h_n[:, i], last, n=N)
        total = total + torch.autograd.grad(alone.pow(3).sum(), parameter)[0]
    assert_rounding(mine, total, n=10 * STEPS * N)


def test_forms_of_input():
    rnn, first = make(), make(batch_first=True)
    first.load_state_dict(rnn.state_dict())
    ids = sentences()
    output, h_n = rnn(ids)
    assert output.shape == (STEPS, BATCH, N)
    assert h_n.shape == (1, BATCH, N)
    other, last = first(ids.T)
    assert torch.equal(other, output.transpose(0, 1))
    assert torch.equal(last, h_n)
    assert torch.equal(rnn(ids.int())[0], output)
    alone, last = rnn(ids[:, 0])
    assert alone.shape == (STEPS, N)
    assert last.shape == (1, N)
    assert rnn(torch.empty(STEPS, 0, dtype=torch.long))[0].shape == (STEPS, 0, N)


def test_the_repr_tells_the_options():
    assert repr(UnitaryWordRNN(7, 8)) == "UnitaryWordRNN(7, 8)"
    text = repr(UnitaryWordRNN(7, 8, padding_idx=2, words="lowrank", rank=2, batch_first=True))
    assert text == "UnitaryWordRNN(7, 8, padding_idx=2, batch_first=True, words='lowrank', rank=2)"


@pytest.mark.parametrize("word", [-1, V])
def test_a_word_out_of_the_vocabulary_is_refused_as_by_an_embedding(word):
    ids = torch.tensor([[0, 1], [2, word]])
    with pytest.raises(IndexError):
        nn.Embedding(V, N)(ids)
    for call in (make(), make("lowrank"), make().phrase_matrix):
        with pytest.raises(IndexError, match=rf"expected words from 0 to num_embeddings - 1 = 6, got {word}"):
            call(ids)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make()(torch.zeros(3, 2)), ValueError, "expected words as integers"),
        (lambda: make()(torch.zeros(3, 2, 1).long()), ValueError, "Expected input to be 1D or 2D, got 3D"),
        (lambda: make()([1, 2]), TypeError, "expected input of UnitaryWordRNN to be a tensor, got list"),
        (lambda: make()(torch.empty(0, 2).long()), RuntimeError, "sequence length to be larger than 0"),
        (lambda: make()(sentences(), torch.zeros(1, 3, N)), RuntimeError, r"hidden size \(1, 4, 8\), got \(1, 3, 8\)"),
        (lambda: make()(sentences(), torch.zeros(BATCH, N)), RuntimeError, "hx should be 3-D but got 2-D"),
        (lambda: make()(sentences(), torch.zeros(1, BATCH, N)), RuntimeError, "words' dtype torch.float64"),
        (lambda: make("thin"), ValueError, r"words to be one of \('full', 'lowrank'\), got 'thin'"),
        (lambda: make("lowrank", rank=5), ValueError, "rank <= hidden_size / 2 = 4, got 5"),
        (lambda: make(padding_idx=V), ValueError, "padding_idx within num_embeddings = 7, got 7"),
        (lambda: make(padding_idx="a"), TypeError, "padding_idx to be an integer or None, got 'a'"),
        (lambda: make(batch_first=1), TypeError, "batch_first should be of type bool, got: int"),
        (lambda: UnitaryWordRNN(0, 8), ValueError, "num_embeddings >= 1, got 0"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_thin_words_may_be_zero_parallel_or_as_many_as_there_is_room():
    rnn = make("lowrank", rank=N // 2)
    with torch.no_grad():
        rnn.planes[0] = 0
        rnn.planes[1, 0] = rnn.planes[1, 1]
    assert torch.equal(rnn.word_matrix(0), torch.eye(N, dtype=torch.float64))
    assert_rounding(rnn.word_matrix(1), torch.eye(N, dtype=torch.float64), n=N)
    assert_rounding(rnn.word_matrix(torch.arange(V)), exponentials(rnn.planes), n=10 * N)
    rnn(torch.tensor([0, 1, 2]))[0].pow(3).sum().backward()
    assert rnn.planes.grad[:3].isfinite().all()
    assert bool((rnn.planes.grad[3:] == 0).all())


@pytest.mark.parametrize("words", ["full", "lowrank"])
@pytest.mark.parametrize("kind", ["compile", "export"])
def test_a_graph_has_one_operator_for_all_steps(words, kind):
    rnn, ids = UnitaryWordRNN(V, N, 0, words=words, init="haar"), sentences()
    expected, h_n = rnn(ids)
    expected.pow(3).sum().backward()
    parameter = next(rnn.parameters())
    gradient, parameter.grad = parameter.grad, None
    if kind == "export":
        dims = ({0: torch.export.Dim("steps", min=2, max=1000), 1: torch.export.Dim("batch", min=2)},)
        graph = torch.export.export(rnn, (ids,), dynamic_shapes=dims)
        assert sum("unitary_layers.words" in str(node.target) for node in graph.graph.nodes) == 1
        assert_rounding(graph.module()(torch.cat([ids, ids]))[0], rnn(torch.cat([ids, ids]))[0], n=N * STEPS)
        return
    torch.compiler.reset()
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        calls.append(sum("unitary_layers.words" in str(node.target) for node in graph.graph.nodes))
        return graph

    output, last = torch.compile(rnn, backend=backend, fullgraph=True)(ids)
    torch.compiler.reset()
    assert calls == [1]
    output.pow(3).sum().backward()
    assert_rounding(output, expected, n=N * STEPS)
    assert_rounding(last, h_n, n=N * STEPS)
    assert_rounding(parameter.grad, gradient, n=10 * N * STEPS)


def test_second_derivatives_are_refused_in_words():
    rnn = make()
    (gradient,) = torch.autograd.grad(rnn(sentences())[0].pow(3).sum(), rnn.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="expected first derivatives alone"):
        gradient.sum().backward()


def test_half_precision_is_that_of_the_states_alone():
    rnn = UnitaryWordRNN(V, N, init="haar")
    exact, ids = rnn(sentences())[0], sentences()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n = rnn(ids)
    assert output.dtype == h_n.dtype == torch.bfloat16
    assert torch.equal(output, exact.bfloat16())  # products are taken in the precision of the words
    output, _ = rnn.bfloat16()(ids, torch.full((1, BATCH, N), N**-0.5, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert rnn.weight.dtype == torch.float32


def test_thin_words_train_by_any_optimiser():
    torch.manual_seed(0)
    rnn, ids = UnitaryWordRNN(V, N, words="lowrank"), sentences()
    target = rnn(ids)[0].detach().roll(1, -1)
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.03)
    losses = []
    for _ in range(30):
        loss = (rnn(ids)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rnn.projunn_step()  # of which there is nothing to do
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert math.isfinite(losses[-1])


def test_a_vocabulary_of_unitary_words_is_one_weight():
    rnn = UnitaryWordRNN(V, N, init="haar")
    (weight,) = rnn.own_unitary_weights()
    assert weight.matrix.shape == (V, N, N)
    assert_unitary(rnn)
