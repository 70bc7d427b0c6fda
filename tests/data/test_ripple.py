"""The reader of RippleEdits, on rows of ours in the published form."""

import pytest
from sample_rows import write

from jaxedit.data.read import read


def query(prompt, *answers):
    return {"prompt": prompt, "answers": [{"value": v, "aliases": a} for v, a in answers]}


RIPPLE = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the spouse of Ula Brenn is Odo Falk.",
        "subject_id": "Q1",
        "relation": "SPOUSE",
        "target_id": "Q2",
        "original_fact": {"prompt": "The name of the spouse of Ula Brenn is Per Holm."},
    },
    "Logical_Generalization": [
        {
            "test_queries": [
                query("The spouse of Odo Falk is", ("Ula Brenn", ["U. Brenn"])),
                query("Odo Falk is married to", ("Ula Brenn", [])),
            ],
            "test_condition": "OR",
            "condition_queries": [query("The town of Odo Falk is", ("Tarn", []))],
        },
        {
            "test_queries": [query("The spouse of Ula Brenn's spouse is")],
            "test_condition": "OR",
            "condition_queries": [],
        },
    ],
    "Forgetfulness": [
        {
            "test_queries": [query("The friends of Ula Brenn are", ("Ann Lo", []), ("Bo Ek", []))],
            "test_condition": "AND",
            "condition_queries": [],
        }
    ],
    "Compositionality_I": [],
    "Relation_Specifity": [{"test_queries": [], "test_condition": "OR"}, {"test_condition": "XOR"}],
}


def test_ripple(tmp_path):
    found = read("ripple", write(tmp_path, [RIPPLE]))
    (case,) = found
    assert case.request.prompt == "The name of the spouse of {} is"
    assert (case.request.subject, case.request.target) == ("Ula Brenn", "Odo Falk")
    assert case.request.ground_truth == ("Per Holm",)
    assert set(case.probes) == {"ripple/logical_generalization", "ripple/preservation"}
    either = case.probes["ripple/logical_generalization"]
    assert {(p.group, p.rule) for p in either} == {("Logical_Generalization[0]", "any")}
    assert either[0].answers == (("Ula Brenn", "U. Brenn"),)
    assert [c.prompt for c in either[1].conditions] == ["The town of Odo Falk is"]
    (both,) = case.probes["ripple/preservation"]
    assert (both.rule, both.subject) == ("all", "Ula Brenn")
    assert both.answers == (("Ann Lo",), ("Bo Ek",))
    assert [(s.reason, s.whole) for s in found.skipped] == [
        (
            'Logical_Generalization[1]: the query "The spouse of Ula Brenn\'s spouse is" '
            "has no answer",
            False,
        ),
        ("Relation_Specifity[0]: no test_queries", False),
        ("Relation_Specifity[1]: test_condition 'XOR': one of OR, AND", False),
    ]


@pytest.mark.parametrize(
    ("statement", "original", "prompt", "subject", "target"),
    [
        ("The mother tongue of Ula is Ket.", "", "The mother tongue of {} is", "Ula", "Ket"),
        (
            "The name of the country of citizenship of Duke of Uld is Tarn, T.T..",
            "The name of the country of citizenship of Duke of Uld is Uld.",
            "The name of the country of citizenship of {} is",
            "Duke of Uld",
            "Tarn, T.T.",
        ),
        (
            "The name of the author of Life is Long is Odo.",
            "",
            "The name of the author of {} is",
            "Life is Long",
            "Odo",
        ),
        (
            "The name of the award Ula won is Life is Long.",
            "The name of the award Ula won is Gold.",
            "The name of the award {} won is",
            "Ula",
            "Life is Long",
        ),
        (
            "The name of the sports team which Ula is a member of is FC Tarn.",
            "",
            "The name of the sports team which {} is a member of is",
            "Ula",
            "FC Tarn",
        ),
        (
            "The name of the league which FC Tarn plays in is Uld One.",
            "",
            "The name of the league which {} plays in is",
            "FC Tarn",
            "Uld One",
        ),
        (
            "The names of the siblings of Ula are Bo.",
            "",
            "The names of the siblings of {} are",
            "Ula",
            "Bo",
        ),
        (
            "The number of children Ula has is 3.",
            "",
            "The number of children {} has is",
            "Ula",
            "3",
        ),
        (
            "The name of the position held by Ula is mayor.",
            "",
            "The name of the position held by {} is",
            "Ula",
            "mayor",
        ),
        ("Part Two follows Part One.", "", "{} follows", "Part Two", "Part One"),
        ("Part One is followed by Part Two.", "", "{} is followed by", "Part One", "Part Two"),
    ],
)
def test_ripple_finds_the_subject_in_a_statement(
    tmp_path, statement, original, prompt, subject, target
):
    edit = {"prompt": statement, "original_fact": {"prompt": original} if original else None}
    (case,) = read("ripple", write(tmp_path, [{"edit": edit}]))
    got = case.request
    assert (got.prompt, got.subject, got.target) == (prompt, subject, target)


def test_a_statement_of_no_known_form_is_skipped(tmp_path):
    rows = [{"edit": {"prompt": "Is Ula still alive? no."}}, RIPPLE]
    found = read("ripple", write(tmp_path, rows))
    assert [s.reason for s in found.skipped if s.whole] == [
        "no known form of statement: 'Is Ula still alive? no.'"
    ]
