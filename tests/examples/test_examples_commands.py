"""The commands that the documentation and the docstrings of the examples show are taken by the scripts they name."""

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = [path for path in sorted(EXAMPLES.rglob("*.py")) if "__main__" in path.read_text()]
SPANS = r"`([^`\n]+)`|^    (\S.*)$|^((?:python|torchrun) .*)$"  # between backquotes, or lines: indented, or a command


def commands() -> list[str]:
    """From a script's name on, without what stands before it (python, torchrun and its options)."""
    pages = [page for folder in ("docs", "model_cards") for page in sorted((ROOT / folder).rglob("*.md"))]
    texts = [ROOT / "README.md", EXAMPLES / "README.md", *pages, *SCRIPTS]
    joined = [re.sub(r"\s*\\+\n\s*", " ", path.read_text()) for path in texts]  # a command may go on in the next line
    spans = ["".join(groups) for text in joined for groups in re.findall(SPANS, text, flags=re.MULTILINE)]
    names = "|".join(re.escape(path.relative_to(EXAMPLES).as_posix()) for path in SCRIPTS)
    found = [re.fullmatch(rf"(?:(?:python|torchrun) .*?)?(?:examples/)?((?:{names})(?: .*)?)", span) for span in spans]
    return sorted({match[1] for match in found if match})


class Parsed(Exception):
    """Raised in the place of what a script does after its options have been read."""


def test_commands_are_found():
    found = commands()
    assert "train_image.py --quick" in found
    assert "adding_problem.py --model rnn --lr 1e-3" in found
    assert any(command.endswith("--direction rmsprop --out runs/paper") for command in found)
    assert any(command.startswith("train_distributed.py --epochs") for command in found)
    assert len(found) >= 25


@pytest.mark.parametrize("command", commands())
def test_a_script_takes_the_options_of_its_command(command: str, monkeypatch: pytest.MonkeyPatch):
    script, *options = shlex.split(command, comments=True)
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, args: list[str] | None = None) -> None:
        parse(parser, args)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "path", [str((EXAMPLES / script).parent), *sys.path])
    spec = importlib.util.spec_from_file_location(f"command_{Path(script).stem}", EXAMPLES / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(Parsed):
        module.main(options)
