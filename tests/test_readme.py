"""The README's tour runs as it is printed, and what it mentions exists."""

import doctest
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_tour_runs():
    assert len(jax.devices()) == 8
    result = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert result.attempted > 25
    assert result.failed == 0


def test_what_the_readme_mentions_exists():
    text = README.read_text()
    paths = re.findall(r"\b(?:jaxedit|tests|benchmarks|docs|launch)/[\w./]+\w", text)
    missing = [p for p in paths if not (ROOT / p).exists()]
    assert not missing
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for command in re.findall(r"make ([a-z-]+)", text):
        assert command in targets


@pytest.mark.parametrize("name", ["forward", "generate", "load", "save", "init", "make_mesh"])
def test_the_public_names_have_a_docstring(name):
    import jaxedit

    assert getattr(jaxedit, name).__doc__
    assert name in dir(jaxedit)
