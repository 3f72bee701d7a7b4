"""A recurrent layer whose words are unitary matrices, and its sentences their products."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from ...init import identity_
from ...linalg.check import check_dense
from ...linalg.transforms import is_transformed
from ...projunn.rule import UpdateRule
from ...training.precision import output_dtype
from ...training.weight import as_complex
from ..base.forward import value_in_use, watch_own
from ..base.inputs import HALF, as_size, dtype_differs
from ..base.module import UnitaryModule
from .packed import reordered
from .planes import rotations
from .products import Words
from .vocabulary import check_words, checked_padding
from .word_scan import word_scan

WORDS = ("full", "lowrank")


class UnitaryWordRNN(UnitaryModule):
    r"""A recurrent layer without a nonlinearity, in which each word is a unitary matrix and a sentence their product.

    .. math:: h_t = M_{w_t} h_{t-1}, \qquad h_T = M_{w_T} \cdots M_{w_1} h_0

    In the place of ``nn.Embedding`` with an ``nn.RNN`` behind it. The state keeps its norm however long the sentence
    is, and what a phrase does is itself a matrix, :meth:`phrase_matrix`.

    Args:
        num_embeddings: V, words of the vocabulary.
        hidden_size: features n of the state.
        padding_idx: a word that is the identity and stays it; it changes no state.
        batch_first: whether padded input and output are ``(batch, seq, ...)``; does not touch ``h_0`` and ``h_n``.
        device: of the parameters.
        dtype: real or complex; of a complex layer the states are complex.
        words: "full", a unitary weight ``(V, n, n)``, of which the words that a batch has take a step and the others
            stay as they are; or "lowrank", a rotation in 2 ``rank`` dimensions, ``exp(A B^H - B A^H)``, by thin
            ``planes`` ``(V, 2, rank, n)``, an ordinary parameter for any optimiser. A token costs n^2 or 4 rank n.
        rank: of "lowrank" words, at most n / 2.
        update: how the words of "full" move.
        init: how they start: "identity", where no word says anything yet, "haar", "henaff", "cayley", "timescales" or a
            filler. Those of "lowrank" start with Gaussian vectors of length 1.

    Inputs:
        input: integers from 0 to V - 1, ``(seq, batch)``, ``(seq,)``, batch first if so said, or a ``PackedSequence``.
        h_0: ``(1, batch, n)`` (unbatched ``(1, n)``), the state to begin with; if not given the unit vector of n equal
            entries. A state to be learnt adds nothing: to turn it is to turn all words and what reads the states.

    Outputs:
        output: ``(seq, batch, n)``, the states, in the form of the input.
        h_n: in the shape of ``h_0``, the last state of each sentence.

    Raises:
        IndexError: for a word that is not in the vocabulary, as ``nn.Embedding``.
        ValueError, TypeError, RuntimeError: for other words, shapes and dtypes, naming expected and got.

    Source: J.-P. Bernardy, S. Lappin, "Assessing the unitary RNN as an end-to-end compositional model of syntax",
    arXiv 2208.05719.

    Example:
        >>> rnn = UnitaryWordRNN(10, 16, padding_idx=0)
        >>> output, h_n = rnn(torch.tensor([[3, 1], [4, 5], [9, 0]]))
        >>> output.square().mean().backward()
        >>> rnn.projunn_step()
    """

    rank_share = 4  # as of other recurrent layers
    uses = 64  # until the layer has seen a sentence
    if TYPE_CHECKING:
        weight: Tensor
        planes: Tensor

    def __init__(
        self,
        num_embeddings: int,
        hidden_size: int,
        padding_idx: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        words: str = "full",
        rank: int = 3,
        update: UpdateRule = UpdateRule(),  # noqa: B008 (a frozen value)
        init: str | Callable[..., Tensor] = "identity",
    ) -> None:
        super().__init__(update, init, dtype)
        self.num_embeddings = as_size("num_embeddings", num_embeddings)
        self.hidden_size = as_size("hidden_size", hidden_size)
        self.padding_idx = checked_padding(padding_idx, self.num_embeddings)
        if not isinstance(batch_first, bool):
            raise TypeError(f"batch_first should be of type bool, got: {type(batch_first).__name__}")
        if words not in WORDS:
            raise ValueError(f"expected words to be one of {WORDS}, got {words!r}")
        self.batch_first = batch_first
        self.words = words
        self.rank = as_size("rank", rank)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if words == "full":
            self.register_unitary("weight", (num_embeddings, hidden_size, hidden_size), **dd, lazy=True)
        elif 2 * self.rank > self.hidden_size:
            raise ValueError(f"expected rank <= hidden_size / 2 = {self.hidden_size / 2:g}, got {rank}")
        else:
            self.register_parameter("planes", self.new_parameter((num_embeddings, 2, self.rank, hidden_size), **dd))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Full words by ``init``, planes of thin ones Gaussian; the padding word becomes the identity."""
        if self.words == "lowrank":
            torch.nn.init.normal_(self.planes, std=(self.hidden_size * (2 if self.is_complex else 1)) ** -0.5)
            if self.padding_idx is not None:
                self.planes[self.padding_idx] = 0
            return
        self.reset_unitary()
        if self.padding_idx is not None:
            weight = self.unitary_weight("weight")
            identity_(weight.matrix[self.padding_idx])
            weight.note()

    def _vocabulary(self, ids: Tensor) -> tuple[Words, Tensor, int | None]:
        """The words among these, in the precision that they are kept in; their places there, and that of the padding.

        Of thin words only those that occur are computed, but in graphs, which are to be the same for all sentences.
        """
        if self.words == "full":
            return Words(value_in_use(self, "weight")), ids, self.padding_idx
        if ids.is_meta or torch.compiler.is_compiling() or is_transformed():
            present = torch.arange(self.num_embeddings, device=ids.device)
        else:
            present, ids = ids.unique(return_inverse=True)
        stored = F.embedding(present, self.planes.flatten(1), self.padding_idx).unflatten(1, self.planes.shape[1:])
        return rotations(as_complex(stored, self.is_complex)), ids, None  # the padding's gradient is zero already

    def word_matrix(self, word: int | Tensor) -> Tensor:
        """The unitary matrix ``(n, n)`` of a word, or ``(..., n, n)`` of words ``(...)``; differentiable."""
        ids = torch.as_tensor(word, device=self._stored.device)
        return self.phrase_matrix(ids.reshape(1, -1)).view(*ids.shape, self.hidden_size, self.hidden_size)

    def phrase_matrix(self, phrase: Tensor | list[int]) -> Tensor:
        """The unitary matrix of a phrase: the product of its words' matrices, that of its first word rightmost.

        Of a phrase a followed by b it is ``phrase_matrix(b) @ phrase_matrix(a)``; of no words the identity.

        Args:
            phrase: words ``(seq,)``, or phrases ``(seq, batch)``, time first whatever ``batch_first`` is.

        Returns:
            ``(n, n)``, or ``(batch, n, n)``; differentiable.
        """
        ids = torch.as_tensor(phrase, device=self._stored.device)
        ids = ids if ids.numel() else ids.long()
        check_words(ids, self.num_embeddings)
        n, steps = self.hidden_size, ids.size(0)
        # Each column of the identity is a state to begin with, and the last states are the columns of the product.
        rows = ids.unsqueeze(-1).expand(*ids.shape, n).flatten()
        words, rows, padding = self._vocabulary(rows)
        h_n = torch.eye(n, dtype=words.left.dtype, device=ids.device).repeat(math.prod(ids.shape[1:]), 1)
        if steps:
            h_n = word_scan(words, rows, steps, h_n, padding)[1]
        return h_n.view(*ids.shape[1:], n, n).mT

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if isinstance(input, Proxy):
            return self.recorded(input, hx)
        if hx is not None:
            check_dense("hx of UnitaryWordRNN", hx)
        if isinstance(input, PackedSequence):
            data, sizes, order, undo = input
            check_words(data, self.num_embeddings)
            h_0 = None if hx is None else reordered(hx, order)
            output, h_n = self._run(data, sizes, h_0, int(sizes[0]))
            return PackedSequence(output, sizes, order, undo), reordered(h_n, undo)
        check_words(input, self.num_embeddings)
        batched = input.dim() == 2
        if hx is not None and hx.dim() != input.dim() + 1:
            kind = f"{input.dim()}-D words, hx should be {input.dim() + 1}-D"
            raise RuntimeError(f"For {kind} but got {hx.dim()}-D tensor")
        ids = (input.transpose(0, 1) if self.batch_first else input) if batched else input.unsqueeze(1)
        if ids.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        h_0 = hx if hx is None or batched else hx.unsqueeze(1)
        steps = int(ids.size(0)) if torch.jit.is_tracing() else ids.size(0)
        output, h_n = self._run(ids.flatten(), steps, h_0, ids.size(1))
        output = rearrange(output, "(t b) f -> t b f", t=ids.size(0))
        if not batched:
            return output.squeeze(1), h_n.squeeze(1)
        return (output.transpose(0, 1) if self.batch_first else output), h_n

    def _run(self, ids: Tensor, lengths: Tensor | int, hx: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """States of packed words ``(rows,)``, with lengths as for :func:`word_scan`."""
        watch_own(self)
        if torch.is_grad_enabled() and not is_transformed():
            self.uses = len(lengths) if isinstance(lengths, Tensor) else lengths
        words, ids, padding = self._vocabulary(ids.long())
        h_0 = self._initial_state(batch, hx)
        # Products of thousands of words are taken in the precision of the words, whatever that of the states is.
        output, h_n = word_scan(words, ids, lengths, h_0.to(words.left.dtype), padding)
        dtype = output_dtype(h_0)
        return output.to(dtype), h_n.unsqueeze(0).to(dtype)

    def _initial_state(self, batch: int, hx: Tensor | None) -> Tensor:
        """The states to begin with ``(batch, n)``, after a look at their shape and dtype."""
        like = self.value("weight" if self.words == "full" else "planes")
        if hx is None:
            return like.new_full((batch, self.hidden_size), self.hidden_size**-0.5)
        expected = (1, batch, self.hidden_size)
        if tuple(hx.shape) != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {tuple(hx.shape)}")
        if hx.device != like.device or (hx.dtype not in HALF and dtype_differs(hx, like)):
            raise RuntimeError(
                f"expected hx of the words' dtype {like.dtype} on {like.device}, got {hx.dtype} on {hx.device}"
            )
        return hx.squeeze(0)

    @property
    def _stored(self) -> Tensor:
        return self.weight if self.words == "full" else self.planes

    def extra_repr(self) -> str:
        defaults = {"padding_idx": None, "batch_first": False, "words": "full", "is_complex": False}
        parts = [f"{k}={getattr(self, k)!r}" for k, default in defaults.items() if getattr(self, k) != default]
        parts += [f"rank={self.rank}"] if self.words == "lowrank" else []
        return ", ".join([f"{self.num_embeddings}, {self.hidden_size}", *parts, *self.extra_repr_of_rule("identity")])
