"""Evaluation: what is asked of an edited model, and the numbers that come of it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxedit.evaluate.runner import run
    from jaxedit.evaluate.scores import score
    from jaxedit.evaluate.summary import summarise, table

# Imported at first use: a summary is read without jax.
HOME = {"run": "runner", "score": "scores", "summarise": "summary", "table": "summary"}

__all__ = ["run", "score", "summarise", "table"]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'jaxedit.evaluate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxedit.evaluate.{HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
