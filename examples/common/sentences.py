"""Tasks on sentences: word problems of groups, brackets, and the number of verbs.

The sentences are made up. A batch has words ``(time, batch)``, what is to be said after each of them, and a number by
which places are told apart in a test: how long the sentence is so far, how many brackets are open, how many nouns
distract.
"""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NOTHING = -100  # as a target: nothing is asked here


class Sentences(NamedTuple):
    """A batch; each a tensor ``(time, batch)`` of integers.

    Attributes:
        words: indices of words.
        targets: classes, or NOTHING.
        kinds: of places.
    """

    words: Tensor
    targets: Tensor
    kinds: Tensor


class Task(Protocol):
    """Sentences to learn from, and others to be tested on.

    Attributes:
        words, classes: sizes of the vocabulary and of what is said of a word.
        padding: the word that ends short sentences, or None.
        lengths: of the sentences of one training, by its stages.
        tested: the kinds of places of a test.
        axis: what these numbers are.
    """

    words: int
    classes: int
    padding: int | None
    lengths: tuple[int, ...]
    tested: tuple[int, ...]
    axis: str

    def training(self, length: int, batch: int, seed: int) -> Sentences:
        """A batch to learn from, the same for the same seed."""
        ...

    def test(self, batch: int, seed: int) -> Sentences:
        """A batch to be tested on."""
        ...


class WordProblem:
    """Say the product of all elements of a group so far; each element is a word.

    The group is that of all permutations of five things, or of the even ones.
    """

    padding = None
    lengths = (4, 16, 64)
    tested = (64, 250, 1000)
    axis = "length"

    def __init__(self, even: bool) -> None:
        elements = [p for p in itertools.permutations(range(5)) if not even or _is_even(p)]
        index = {p: i for i, p in enumerate(elements)}
        table = [[index[tuple(p[i] for i in q)] for q in elements] for p in elements]
        self.table = torch.tensor(table)  # of p q, q first
        self.words = self.classes = len(elements)

    def training(self, length: int, batch: int, seed: int) -> Sentences:
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(self.words, (length, batch), generator=generator)
        products = [words[0]]
        for word in words[1:]:
            products.append(self.table[word, products[-1]])
        kinds = torch.arange(1, length + 1).unsqueeze(1).expand_as(words)
        return Sentences(words, torch.stack(products), kinds)

    def test(self, batch: int, seed: int) -> Sentences:
        return self.training(max(self.tested), batch, seed)


def _is_even(p: tuple[int, ...]) -> bool:
    return sum(p[i] > p[j] for i, j in itertools.combinations(range(len(p)), 2)) % 2 == 0


class Brackets:
    """Say which kind of bracket is to be closed next, wherever one is open: Dyck words of five kinds.

    Of kind k they are the words k and k + 5. Training is on words of at most depth 3 and length 32. The test is on
    those of depth 6 and length 64, and asks only after a closing bracket, where it is not the word just read that is
    asked for.
    """

    kinds = 5
    words, classes = 2 * kinds, kinds
    padding = None
    lengths = (8, 32)
    tested = tuple(range(1, 6))
    axis = "open brackets"

    def training(self, length: int, batch: int, seed: int) -> Sentences:
        return self._words(length, 3, batch, seed)

    def test(self, batch: int, seed: int) -> Sentences:
        sentences = self._words(64, 6, batch, seed)
        asked = (sentences.words >= self.kinds) & (sentences.targets != NOTHING)
        return sentences._replace(targets=torch.where(asked, sentences.targets, NOTHING))

    def _words(self, length: int, most: int, batch: int, seed: int) -> Sentences:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(self.kinds, (length, batch), generator=generator)
        opens = torch.rand(length, batch, generator=generator) < 0.5
        stack, each = torch.zeros(batch, most + 1, dtype=torch.long), torch.arange(batch)
        depth = torch.zeros(batch, dtype=torch.long)
        words, targets, depths = [], [], []
        for t in range(length):
            is_open = ((opens[t] & (depth < most)) | (depth == 0)) & (depth < length - t)
            words.append(torch.where(is_open, chosen[t], stack[each, depth] + self.kinds))
            depth = depth + torch.where(is_open, 1, -1)
            stack[each, depth] = torch.where(is_open, chosen[t], stack[each, depth])
            targets.append(torch.where(depth > 0, stack[each, depth], NOTHING))
            depths.append(depth)
        return Sentences(torch.stack(words), torch.stack(targets), torch.stack(depths))


SINGULAR, PLURAL = 0, 1


class Agreement:
    """Say before each verb whether it is singular or plural: it is as the first noun of its clause.

    Between them there may be other nouns, in a row ("the keys to the cabinet are") or with a clause of their own ("the
    keys that the man sees are"); those of the other number, up to the verb, are its attractors. Training is on
    sentences whose verbs have at most two, the test on those with up to five.
    """

    padding = 0
    the, that, *prepositions = range(1, 6)
    nouns = (range(6, 14), range(14, 22))
    verbs = (range(22, 26), range(26, 30))
    words, classes = 30, 2
    lengths = (40,)
    tested = tuple(range(6))
    axis = "attractors"

    def training(self, length: int, batch: int, seed: int) -> Sentences:
        return self._sentences(length, batch, [range(3)], 0.45, seed)

    def test(self, batch: int, seed: int) -> Sentences:
        return self._sentences(40, batch, [range(most, most + 1) for most in self.tested], 0.8, seed)

    def _sentences(self, longest: int, batch: int, most: list[range], more: float, seed: int) -> Sentences:
        """Sentences whose verb with the most attractors has so many as the ranges say, one after another."""
        rng, found = random.Random(seed), []
        while len(found) < batch:
            sentence = self._clause(rng, more, 0)
            if len(sentence[0]) <= longest and max(sentence[2]) in most[len(found) % len(most)]:
                found.append(sentence)
        length = max(len(words) for words, _, _ in found)
        fills = (self.padding, NOTHING, NOTHING)
        parts = zip(*found, strict=True)
        padded = ([x + [fill] * (length - len(x)) for x in part] for part, fill in zip(parts, fills, strict=True))
        return Sentences(*(torch.tensor(part).mT.contiguous() for part in padded))

    def _clause(self, rng: random.Random, more: float, depth: int) -> tuple[list[int], list[int], list[int]]:
        """A subject and its verb: words, what is asked after each, and the attractors there."""
        numbers: list[int] = []
        words: list[int] = []
        targets: list[int] = []
        kinds: list[int] = []

        def say(*new: int) -> None:
            words.extend(new)
            targets.extend([NOTHING] * len(new))
            kinds.extend([NOTHING] * len(new))

        while True:
            number = rng.choice((SINGULAR, PLURAL))
            numbers.append(number)
            say(self.the, rng.choice(self.nouns[number]))
            if depth < 2 and rng.random() < 0.2:
                say(self.that)
                inner = self._clause(rng, more / 2, depth + 1)
                words += inner[0]
                targets += inner[1]
                kinds += inner[2]
                numbers += [SINGULAR if w in self.nouns[SINGULAR] else PLURAL for w in inner[0] if 6 <= w < 22]
            if rng.random() >= more:
                break
            say(rng.choice(self.prepositions))
        targets[-1], kinds[-1] = numbers[0], sum(number != numbers[0] for number in numbers)
        say(rng.choice(self.verbs[numbers[0]]))
        return words, targets, kinds


TASKS = {"a5": WordProblem(even=True), "s5": WordProblem(even=False), "brackets": Brackets(), "agreement": Agreement()}
