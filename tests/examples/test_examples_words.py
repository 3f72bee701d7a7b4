"""Words as unitary matrices: the sentences are what they are said to be, and the script runs, goes on and draws."""

import csv
from pathlib import Path

import pytest
import torch
import words
from common.sentences import NOTHING, TASKS


@pytest.mark.parametrize(("name", "order"), [("a5", 60), ("s5", 120)])
def test_the_elements_are_a_group(name: str, order: int) -> None:
    task = TASKS[name]
    table, each = task.table, torch.arange(order)
    assert task.words == task.classes == order
    assert torch.equal(table.sort(dim=0).values, each.unsqueeze(1).expand(order, order))
    assert torch.equal(table[table], table[each[:, None, None], table])  # (p q) r = p (q r)
    batch = task.training(7, 5, seed=0)
    product = batch.words[0]
    for word in batch.words[1:]:
        product = table[word, product]
    assert torch.equal(batch.targets[-1], product)


def test_brackets_are_closed_by_their_own_kind() -> None:
    batch = TASKS["brackets"].training(20, 30, seed=0)
    for sentence, targets in zip(batch.words.T.tolist(), batch.targets.T.tolist(), strict=True):
        stack: list[int] = []
        for word, target in zip(sentence, targets, strict=True):
            if word < 5:
                stack.append(word)
            else:
                assert stack.pop() == word - 5
            assert len(stack) <= 3
            assert target == (stack[-1] if stack else NOTHING)
        assert not stack
    test = TASKS["brackets"].test(30, seed=0)
    assert int(test.kinds.max()) == 6
    assert bool((test.words[test.targets != NOTHING] >= 5).all())


def test_a_verb_agrees_with_the_first_noun_of_its_clause() -> None:
    task = TASKS["agreement"]
    batch = task.test(24, seed=0)
    assert set(batch.kinds[batch.targets != NOTHING].tolist()) == set(task.tested)
    for sentence, targets in zip(batch.words.T.tolist(), batch.targets.T.tolist(), strict=True):
        subjects: list[int] = []
        is_subject = True
        for word, target, after in zip(sentence, targets, [*sentence[1:], task.padding], strict=True):
            if word in (*task.nouns[0], *task.nouns[1]) and is_subject:
                subjects.append(int(word in task.nouns[1]))
                is_subject = False
            is_subject = is_subject or word == task.that
            assert (target != NOTHING) == (after in (*task.verbs[0], *task.verbs[1]))
            if target != NOTHING:
                number = subjects.pop()
                assert target == number
                assert after in task.verbs[number]
        assert not subjects


def test_the_script_trains_goes_on_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--tasks", "brackets", "--steps", "2", "--out", str(tmp_path)]
    words.main([*options, "--models", "words", "lstm"])
    words.main([*options, "--models", "lowrank", "transformer", "--resume"])
    with (tmp_path / "words.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == set(words.MODELS)
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")
    assert "open brackets 1 " in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="holds a run"):
        words.main([*options[1:], "--models", "words", "--seeds", "0"])
