"""The cases of a run within a page: their data, compact, and what is shown without a script."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxedit.report import html, names
from jaxedit.report.folder import Record, mapping, number

VERDICTS = ("no edit", "not taken", "partly right", "all right", "not judged")
STATIC = 50  # cases that are shown where no script runs


def verdict(case: Record) -> int:
    """Which of VERDICTS; the sooner it comes, the worse it is."""
    judged = [(p.get("key"), p["right"]) for p in probes(case) if p.get("right") is not None]
    if case.get("failed"):
        return 0
    if any(key == "edit" and not right for key, right in judged):
        return 1
    if not all(right for _, right in judged):
        return 2
    return 3 if judged else 4


def wrong(case: Record) -> int:
    return sum(p.get("right") is False for p in probes(case))


def failures_first(cases: Sequence[Record]) -> list[Record]:
    return sorted(cases, key=lambda c: (verdict(c), -wrong(c), c.get("place", 0)))


def probes(case: Record) -> Sequence[Record]:
    return case.get("probes") or ()


def pack(cases: Sequence[Record]) -> dict[str, Any]:
    """Lists in the place of objects, and names as numbers: what the page's script reads.

    A probe's answers after the edit are 0 where they are those before it.
    """
    keys = list(dict.fromkeys(str(p.get("key", "")) for c in cases for p in probes(c)))
    metrics = names.ordered_all(n for c in cases for n in mapping(c.get("scores")))
    return {
        "verdicts": VERDICTS,
        "keys": keys,
        "metrics": metrics,
        "cases": [
            [
                case.get("place", 0),
                str(case.get("id", "")),
                verdict(case),
                [
                    [r.get("prompt", ""), r.get("subject", ""), r.get("target", ""),
                     r.get("ground_truth") or []]
                    for r in case.get("requests") or ()
                ],
                names.in_words(mapping(case.get("info"))),
                case.get("failed") or [],
                case.get("skipped") or [],
                {k: v for k, v in mapping(case.get("edit")).items() if number(v) is not None},
                [pack_probe(p, keys) for p in probes(case)],
                [
                    [c.get("beginning", ""), c.get("before"), c.get("after")]
                    for c in case.get("continued") or ()
                ],
                [short(mapping(case.get("scores")).get(name)) for name in metrics],
            ]
            for case in failures_first(cases)
        ],
    }  # fmt: skip


def pack_probe(probe: Record, keys: Sequence[str]) -> list[Any]:
    before, after = pack_answer(probe.get("before")), pack_answer(probe.get("after"))
    return [
        keys.index(str(probe.get("key", ""))),
        probe.get("prompt", ""),
        probe.get("answers") or [],
        probe.get("group") or "",
        before,
        0 if after == before else after,
        short(probe.get("agreement")),
        short(probe.get("kl")),
        None if probe.get("right") is None else int(probe["right"]),
    ]


def pack_answer(answer: Any) -> list[Any] | None:
    """What was said, the free continuation, the mean logarithm of the probabilities of the answer's
    tokens, and the probabilities of the new and the former answer.
    """
    if not isinstance(answer, Mapping):
        return None
    numbers = [short(answer.get(key)) for key in ("logp", "p_new", "p_true")]
    while numbers and numbers[-1] is None:
        numbers.pop()
    return [answer.get("said"), answer.get("text"), *numbers]


def short(value: Any) -> float | int | None:
    """Four figures; a number that JSON has no word for is None."""
    found = number(value)
    if found is None:
        return None
    return int(found) if found == math.floor(found) and abs(found) < 1e9 else float(f"{found:.4g}")


def embed(data: Any) -> str:
    """JSON within a page, which no text in it can end or turn into markup."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="data">{text}</script>'


def browser(cases: Sequence[Record]) -> list[str]:
    """The parts of a page: controls that a script fills, the data, and what stands without it."""
    count = Counter(verdict(c) for c in cases)
    told = ", ".join(f"{VERDICTS[i]} {count[i]:,}" for i in sorted(count))
    fields = "".join(
        f'<label>{name}<select id="{id}"></select></label>'
        for id, name in (
            ("verdict", "Cases"), ("kind", "Kind of probe"), ("mark", "Answers"), ("order", "Order")
        )
    )  # fmt: skip
    controls = (
        '<form class="controls" id="controls" role="search" hidden><label>Search'
        '<input id="search" type="search" placeholder="subject, prompt, answer, id" '
        f'autocomplete="off" spellcheck="false"></label>{fields}</form>'
    )
    return [
        html.paragraph(f"{names.count(len(cases))}: {told}. Failures first."),
        html.paragraph(
            "Answers are what the model says by itself, where that was asked for; “led” is what it "
            "would say in the place of the answer's tokens, led through them. Numbers: before → "
            "after the edit.",
            "note",
        ),
        controls,
        '<p class="count" id="count" role="status" aria-live="polite"></p>',
        '<ol class="cases" id="list"></ol>',
        '<p><button type="button" id="more" hidden>Show more</button></p>',
        f"<noscript>{static(cases)}</noscript>",
        embed(pack(cases)),
    ]


def static(cases: Sequence[Record]) -> str:
    """The worst cases as a plain table."""
    rows = []
    for case in failures_first(cases)[:STATIC]:
        requests: Sequence[Record] = case.get("requests") or ()
        asked = "; ".join(filled(r) for r in requests)
        target = "; ".join(str(r.get("target", "")) for r in requests)
        said = spoken(case)
        kind = verdict(case)
        mark = {0: "✗ ", 1: "✗ ", 2: "◐ ", 3: "✓ "}.get(kind, "")
        rows.append(
            f'<tr><td class="v{kind}">{mark}{VERDICTS[kind]}</td><td>{escape(asked)}</td>'
            f"<td>{escape(target)}</td><td>{escape(said)}</td>"
            f"<td>{escape(str(case.get('id', '')))}</td></tr>"
        )
    head = "".join(f"<th>{h}</th>" for h in ("", "prompt", "new answer", "said after", "case"))
    more = "" if len(cases) <= STATIC else f"These are the first {STATIC} of {len(cases):,}. "
    note = html.paragraph(
        f"{more}Searching, filters and every answer need JavaScript, which is off; "
        "all of it is in cases.jsonl as well.",
        "note",
    )
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return note + html.scroll("The first cases", body)


def edits(case: Record) -> list[Record]:
    return [p for p in probes(case) if p.get("key") == "edit"]


def spoken(case: Record) -> str:
    """What the edited model says to the requests: freely, where that was asked for."""
    after = [mapping(p.get("after")) for p in edits(case)]
    texts = [a.get("said") if a.get("text") is None else a["text"] for a in after]
    return "; ".join(str(text).strip() for text in texts if text is not None)


def filled(request: Record) -> str:
    prompt = str(request.get("prompt", ""))
    return prompt.replace("{}", str(request.get("subject", "")), 1)
