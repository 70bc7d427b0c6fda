"""Fields of published rows: the text, the names and the probes in them, with what is wrong said."""

from collections.abc import Mapping
from typing import Any, Literal

from jaxedit.data.cases import Probe


def text(row: Any, field: str) -> str:
    """A string that must be there, without the blanks around it."""
    if not isinstance(row, Mapping):
        raise ValueError(f"an object with fields was expected, not a {type(row).__name__}")
    value = row[field]
    if not isinstance(value, str):
        raise ValueError(f"{field} is {value!r:.60}, not a string")
    if not value.strip():
        raise ValueError(f"empty {field}")
    return value.strip()


def optional(row: Mapping[str, Any], field: str) -> str:
    """A string that may be absent or null: then it is empty."""
    value = row.get(field)
    return value.strip() if isinstance(value, str) else ""


def number(row: Mapping[str, Any], field: str) -> str:
    """The id of a row, a number or a string, or "" where it has none."""
    value = row.get(field)
    return "" if value is None else str(value)


def names(value: Any) -> tuple[str, ...]:
    """One answer from a string, a number or a list of them: its names, each once, no empty ones."""
    values = value if isinstance(value, list | tuple) else [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, str | int | float):
            raise ValueError(f"the answer {v!r:.60} is not a string")
    return tuple(dict.fromkeys(t for v in values if (t := str(v).strip())))


def answers(value: Any) -> tuple[tuple[str, ...], ...]:
    """Answers as `Probe` holds them; one without a name is (), for the caller to report.

    A string is the answer. A list of strings is one answer and its aliases. A list with lists in
    it is several answers, each as its aliases.
    """
    if isinstance(value, list | tuple) and any(isinstance(v, list | tuple) for v in value):
        return tuple(names(v) for v in value)
    return (names(value),)


class Probes:
    """The probes of a case as they are found; a bad one is left out, and why goes to `reasons`."""

    def __init__(self, subject: str, reasons: list[str]):
        self.subject, self.reasons = subject, reasons
        self.found: dict[str, list[Probe]] = {}

    def add(
        self,
        key: str,
        prompt: Any,
        answer: Any = None,
        group: str = "",
        rule: Literal["any", "all"] = "all",
    ) -> None:
        """answer: as in `answers`; None where there is none to be had."""
        try:
            if not isinstance(prompt, str):
                raise ValueError(f"the prompt {prompt!r:.60} is not a string")
            right = () if answer is None else answers(answer)
            named = tuple(n for n in right if n)
            if len(named) < len(right):
                if not named:
                    raise ValueError(f"the probe {prompt!r} has no answer")
                self.reasons.append(f"{key}: an empty answer of the probe {prompt!r}")
            subject = self.subject if self.subject in prompt else ""
            probe = Probe(prompt.strip(), named, subject, group, rule)
        except ValueError as error:
            self.reasons.append(f"{key}: {error}")
        else:
            self.found.setdefault(key, []).append(probe)

    def add_field(self, key: str, row: Mapping[str, Any], field: str, answer: Any) -> None:
        """A probe, or several, if the row has the field."""
        prompts = row.get(field)
        for prompt in prompts if isinstance(prompts, list) else [prompts]:
            if prompt is not None:
                self.add(key, prompt, answer)

    def one_hop(self, row: Mapping[str, Any]) -> None:
        """The question that EasyEdit's portability files add to a row, if they do."""
        portability = row.get("portability") or {}
        if "New Question" in portability:
            answer = portability.get("New Answer") or ""
            self.add("portability/reasoning", portability["New Question"], answer)

    @property
    def by_key(self) -> dict[str, tuple[Probe, ...]]:
        return {key: tuple(probes) for key, probes in self.found.items()}
