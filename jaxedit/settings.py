"""Configurations: a Python file returns a frozen dataclass, dotted settings replace its leaves.

The file has `def config(preset=…)` and may list its presets in `PRESETS`; what follows an @ in one
is left to it. Values are checked against the fields' annotations, wherever they come from.
"""

import ast
import contextlib
import dataclasses
import difflib
import json
import shlex
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from jaxedit.files import whole

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


def dump(cfg: Any, workdir: str | Path) -> Path:
    """Write `{"command", "config"}` to `workdir/config.json`, whole or not at all."""
    check_local(workdir)
    path = Path(workdir, "config.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(sys.orig_argv)
    return whole(path, to_json({"command": command, "config": dataclasses.asdict(cfg)}) + "\n")


def check_local(workdir: str | Path) -> None:
    if "://" in str(workdir):  # pathlib would make a local folder of that name
        raise ValueError(f"work directory {str(workdir)!r} is not a local path: mount the bucket")


def load(spec: str) -> tuple[Any, list[str]]:
    """The configuration that `file.py` or `file.py:preset` returns, and its presets' names."""
    name, colon, preset = spec.partition(".py:")
    path = Path(name + ".py" if colon else name)
    if not path.is_file():
        raise ValueError(f"--config {spec}: no such file {str(path)!r}")
    # A registered module, because dataclasses resolve their annotations there.
    module = types.ModuleType(f"jaxedit_config_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    presets: list[str] = []
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        presets = [str(key) for key in getattr(module, "PRESETS", ())]
        if preset and presets and (named := preset.partition("@")[0]) not in presets:
            raise ValueError(f"no preset {named!r}; {suggest(named, presets)}")
        if not callable(make := getattr(module, "config", None)):
            raise ValueError("the file has no function config(preset=…)")
        if not is_config(cfg := make(preset) if preset else make()):
            raise ValueError(f"config() must return a dataclass, got {cfg!r}")
        for key, hint, value in walk(cfg):
            settle(key, key, hint, value, [value])
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == str(path)]
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        known = f" (presets: {', '.join(presets)})" if presets and not preset else ""
        place = spec + "".join(lines[-1:])
        raise ValueError(f"--config {place}: {kind}{error}{known}") from error
    return cfg, presets


def override(cfg: Any, settings: Iterable[str]) -> Any:
    """A copy of `cfg` with leaves replaced: `override(cfg, ["editor.layer=7", "save=false"])`.

    Where a field is None that may be a config, setting one of that config's fields makes it.
    """
    settings = list(settings)
    named = [setting.partition("=")[0] for setting in settings]
    hints = {key: hint for key, hint, _ in walk(cfg, named=named)}
    changes = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: missing '=', write --set {key}=VALUE")
        if key not in hints:
            raise ValueError(f"--set {setting}: no field {key!r}; {suggest(key, hints)}")
        inner = [name for name in hints if name.startswith(f"{key}.")]
        if inner and text.lower() != "none":
            raise ValueError(f"--set {setting}: set its fields, one of {', '.join(inner)}")
        changes[key] = settle(f"--set {setting}", key, hints[key], text, readings(text))
    return rebuild(cfg, changes, "")


def rebuild(cfg: Any, changes: dict[str, Any], prefix: str) -> Any:
    # All fields at once, so that a check in __post_init__ sees only the final values.
    new, hints = {}, typing.get_type_hints(type(cfg))
    for field in dataclasses.fields(cfg):
        key, value = prefix + field.name, getattr(cfg, field.name)
        if key in changes:
            new[field.name] = changes[key]
        elif is_config(inner := entered(value, hints[field.name], key, changes)):
            new[field.name] = rebuild(inner, changes, f"{key}.")
    return dataclasses.replace(cfg, **new)


def restore(kind: type, data: Any) -> Any:
    """The config that `dump` wrote: the JSON of dataclasses of type `kind`."""
    if not isinstance(data, dict):
        raise ValueError(f"{data!r:.40} is no {kind.__name__}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(data) - set(hints)):
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}")
    return kind(**{key: thaw(hints[key], value) for key, value in data.items()})


def thaw(hint: Any, value: Any) -> Any:
    """JSON knows neither tuples nor classes."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and value is not None:
        return restore(hint, value)
    if origin in (typing.Union, types.UnionType) and value is not None:
        kinds = [option for option in options if option is not type(None)]
        return thaw(kinds[0], value) if len(kinds) == 1 else value
    if origin is tuple and isinstance(value, list):
        each = options[:1] * len(value) if options[-1:] == (...,) else options
        return tuple(thaw(one, item) for one, item in zip(each, value, strict=True))
    return value


def walk(cfg: Any, prefix: str = "", named: Iterable[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, annotation, value) of every field, those that hold further fields included."""
    hints = typing.get_type_hints(type(cfg))
    for field in dataclasses.fields(cfg):
        key, hint, value = prefix + field.name, hints[field.name], getattr(cfg, field.name)
        yield key, hint, value
        if is_config(inner := entered(value, hint, key, named)):
            yield from walk(inner, f"{key}.", named)


def entered(value: Any, hint: Any, key: str, named: Iterable[str]) -> Any:
    """The value of a field; for None, the config that it may be if one of its fields is named."""
    if value is None and any(name.startswith(f"{key}.") for name in named):
        kinds = [kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)]
        with contextlib.suppress(TypeError):  # it has fields without a default
            return kinds[0]() if len(kinds) == 1 and isinstance(kinds[0], type) else None
    return value


def settle(where: str, key: str, hint: Any, given: Any, readings: Iterable[Any]) -> Any:
    """The first of `readings` of what was given that field `key` takes."""
    if key.endswith("dtype"):
        hint = {str: Dtype, str | None: Dtype | None}.get(hint, hint)
    for reading in readings:
        with contextlib.suppress(ValueError):
            return accept(reading, hint)
    if words := choices(hint):
        close = difflib.get_close_matches(str(given), words, 1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{where}: {given!r}: one of {', '.join(map(repr, words))}{meant}")
    raise ValueError(f"{where}: expected {show(hint)}, got {given!r}")


def choices(hint: Any) -> list[str]:
    """The words that a field takes, if that is all it takes."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return [*map(str, options)]
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return []
    each = [["none"] if option is type(None) else choices(option) for option in options]
    return [word for words in each for word in words] if all(each) else []


def readings(text: str) -> Iterator[Any]:
    """What `text` can mean, the most special first: none, true, a Python literal, words."""
    if text.lower() in (words := {"none": None, "true": True, "false": False}):
        yield words[text.lower()]
    with contextlib.suppress(ValueError, SyntaxError, TypeError):  # TypeError: {[]: 1}
        value = ast.literal_eval(text)
        if not isinstance(value, str):
            yield tuple(value) if isinstance(value, list) else value
    yield text
    with contextlib.suppress(ValueError):
        yield float(text)  # inf; 1e-4 is a literal already
    items = [item.strip(" '\"") for item in text.strip(" ()[]").split(",") if item.strip()]
    yield tuple(next(readings(item)) for item in items)
    yield tuple(items)


def accept(value: Any, hint: Any) -> Any:
    """`value`, an int as a float where one is wanted; ValueError if it is not of type `hint`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if origin in (typing.Union, types.UnionType):
        for option in options:
            with contextlib.suppress(ValueError):
                return accept(value, option)
    elif origin is Literal:
        if any(value == option and type(value) is type(option) for option in options):
            return value
    elif origin is tuple and isinstance(value, tuple):
        each = options[:1] * len(value) if options[-1:] == (...,) else options
        return tuple(accept(item, option) for item, option in zip(value, each, strict=True))
    elif hint is int or hint is float:
        if isinstance(value, int | hint) and not isinstance(value, bool):
            return hint(value)
    elif hint is Any or not isinstance(kind, type) or isinstance(value, kind):
        return value
    raise ValueError(value)


def show(hint: Any) -> str:
    plain = isinstance(hint, type) and not typing.get_args(hint)
    return hint.__name__ if plain else str(hint).replace("typing.", "")


def table(cfg: Any) -> str:
    """One line for each leaf: path, type, value."""
    rows = [(key, show(hint), repr(v)) for key, hint, v in walk(cfg) if not is_config(v)]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"  {a:<{wide[0]}}  {b:<{wide[1]}}  {c}" for a, b, c in rows)


def suggest(word: str, names: Iterable[str]) -> str:
    names = list(names)
    # `layer` is short for `editor.layer`, whatever else looks like it.
    close = [name for name in names if name.rpartition(".")[2] == word]
    close = close or difflib.get_close_matches(word, names)
    return f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(names)}"


def to_json(tree: Any) -> str:
    return json.dumps(tree, indent=2, default=str)


def is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
