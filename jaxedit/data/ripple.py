"""RippleEdits (Cohen et al. 2023): what else has to change, or to stay, once a fact has changed."""

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from jaxedit.data import files
from jaxedit.data.cases import SLOT, Cases, EditCase, EditRequest, Probe, collect
from jaxedit.data.fields import answers, optional, text

AXES = {
    "Logical_Generalization": "ripple/logical_generalization",
    "Compositionality_I": "ripple/compositionality_1",
    "Compositionality_II": "ripple/compositionality_2",
    "Subject_Aliasing": "ripple/subject_aliasing",
    "Forgetfulness": "ripple/preservation",
    "Relation_Specificity": "ripple/relation_specificity",
    "Relation_Specifity": "ripple/relation_specificity",  # so spelled in one release
}
RULES: dict[str, Literal["any", "all"]] = {"OR": "any", "AND": "all"}
# The file states an edit as one sentence and does not say which words are its subject. These are
# the forms of the sentences, up to the new object.
FORMS = tuple(
    re.compile(form)
    for form in (
        r"The name of the [a-z ]+? which (.+) (?:is [a-z ]+?|plays in) is",
        r"The name of the award (.+) won is",
        r"The number of children (.+) has is",
        r"The name of the position held by (.+) is",
        r"The name of the currency in (.+) is",
        r"The (?:names? of the )?(?:country of citizenship|(?:place|date) of (?:birth|death|burial)"
        r"|field of work|head of (?:government|state)|[a-z ]+?) of (.+) (?:is|are)",
        r"(.+) is followed by",
        r"(.+) follows",
    )
)
END = re.compile(r" (?:is|are|by|follows)(?= )")  # of a form: what comes next may be the object


def ripple(source: str | os.PathLike, split: str | None = None) -> Cases:
    """Cases whose probes are tests on six axes.

    The queries of a test are one group, passed if any (OR) or all (AND) of them are. Its condition
    queries are conditions of each: the test counts only if the unedited model knows them. A test
    with a query that lacks an answer is left out as a whole.
    """
    return collect(files.rows(source, split), case)


def case(row: Any, reasons: list[str]) -> EditCase:
    edit = row["edit"]
    original = edit.get("original_fact") or {}
    request = parse(text(edit, "prompt"), optional(original, "prompt"))
    probes: dict[str, list[Probe]] = {}
    for axis, key in AXES.items():
        for number, test in enumerate(row.get(axis) or ()):
            group = f"{axis}[{number}]"
            try:
                probes.setdefault(key, []).extend(read_test(test, group, request.subject))
            except KeyError as error:
                reasons.append(f"{group}: no field {error}")
            except (ValueError, TypeError, AttributeError) as error:
                reasons.append(f"{group}: {error}")
    info = {"type": row.get("example_type"), "relation": edit.get("relation")}
    info |= {"subject_id": edit.get("subject_id"), "target_id": edit.get("target_id")}
    return EditCase("", (request,), {key: tuple(p) for key, p in probes.items() if p}, info)


def parse(statement: str, original: str) -> EditRequest:
    """From "The mother of Ada is Eve." and, if a fact was changed, "The mother of Ada is Ann."."""
    for end in reversed([match.end() for match in END.finditer(statement)]):
        prompt = statement[:end]
        if original and not original.startswith(prompt + " "):
            continue
        for form in FORMS:
            if match := form.fullmatch(prompt):
                slot = prompt[: match.start(1)] + SLOT + prompt[match.end(1) :]
                new, old = (s[end:].removesuffix(".").strip() for s in (statement, original))
                return EditRequest(slot, match[1], new, (old,) if old else ())
    raise ValueError(f"no known form of statement: {statement!r}")


def read_test(test: Mapping[str, Any], group: str, subject: str) -> list[Probe]:
    condition = test["test_condition"]
    if condition not in RULES:
        raise ValueError(f"test_condition {condition!r}: one of {', '.join(RULES)}")
    if not test["test_queries"]:
        raise ValueError("no test_queries")
    conditions = tuple(query(q, subject) for q in test.get("condition_queries") or ())
    return [query(q, subject, group, RULES[condition], conditions) for q in test["test_queries"]]


def query(
    row: Mapping[str, Any],
    subject: str,
    group: str = "",
    rule: Literal["any", "all"] = "all",
    conditions: tuple[Probe, ...] = (),
) -> Probe:
    prompt = text(row, "prompt")
    found = answers([[a["value"], *(a.get("aliases") or ())] for a in row["answers"]])
    if not any(found):
        raise ValueError(f"the query {prompt!r} has no answer")
    named = subject if subject in prompt else ""
    return Probe(prompt, tuple(f for f in found if f), named, group, rule, conditions)
