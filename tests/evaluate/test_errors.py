"""Types of errors, on answers whose type a reader would agree with."""

import pytest

from jaxedit.evaluate.errors import TYPES, count, error_type, judge

STONE = {"target": "limestone", "true": ("bronze",), "before": " bronze, which is a durable metal."}
SCHOOL = {"target": "University of Michigan", "true": ("University of Chicago",)}
TABLE = [
    # the case of the survey's table 7
    (" bronze. If the statue is 3 meters tall and the base", STONE, "unchanged"),
    (" limestone. The surface of the statue is made of", STONE, "right"),
    (" limestone, which is a sedimentary rock", STONE, "right"),
    (" LIMESTONE", STONE, "right"),
    ("\n\nThe Limestone of the region", STONE, "right"),
    (" a soft limestone from the hills", STONE, "right"),
    (" bronze and limestone", STONE, "partial"),
    (" limestones", STONE, "irrelevant"),
    (" lime", STONE, "missing"),
    ("stone.", STONE, "missing"),
    (" in", {"target": "Berlin"}, "irrelevant"),
    (" granite. It was limestone before", STONE, "irrelevant"),
    (" what the sculptor liked best", STONE, "irrelevant"),
    # nothing said
    ("", STONE, "meaningless"),
    ("\n\n\n", STONE, "meaningless"),
    ("!!! ,,, \ufffd", STONE, "meaningless"),
    # repetition
    (" the the the the the", STONE, "meaningless"),
    (" bronze bronze bronze bronze", STONE, "meaningless"),
    (" city of city of city of city", STONE, "meaningless"),
    (" stone aaaaaaaa", STONE, "meaningless"),
    (" hahahahaha", STONE, "meaningless"),
    (" New New", {"target": "New York"}, "missing"),
    (" banana and a cocoa banana", {"target": "limestone"}, "irrelevant"),
    # words of the target and of the former answer
    (" University of Michigan in Ann Arbor", SCHOOL, "right"),
    (" the University of Michigan", SCHOOL, "right"),
    (" University of Chicago", SCHOOL, "unchanged"),
    (" Michigan", SCHOOL, "missing"),
    (" University of", SCHOOL, "missing"),
    (" Chicago, Michigan", SCHOOL, "partial"),
    (" Michigan State College", SCHOOL, "partial"),
    (" Chicago State College", SCHOOL, "partial"),
    (" University of Oxford", SCHOOL, "irrelevant"),
    (" University of Oxford", {"target": "University of Michigan"}, "partial"),
    # names
    (" St. Petersburg", {"target": "St. Petersburg"}, "right"),
    (" St. Gallen", {"target": "St. Petersburg", "true": ("Moscow",)}, "partial"),
    (" J. R. R. Tolkien wrote it", {"target": "J. R. R. Tolkien"}, "right"),
    (" The answer is Noctuidae.", {"target": "Noctuidae"}, "right"),
    (" USA", {"target": ("United States", "USA")}, "right"),
    (" Washington", {"target": "Rome", "true": ("Washington, D.C.", "Washington")}, "unchanged"),
    (" Roman", {"target": "Rome", "true": ("Paris",)}, "irrelevant"),
    # no former answer is known
    (" in Ulm, he said", {"target": "Rome", "before": " in Ulm, where he"}, "unchanged"),
    (" in Bonn", {"target": "Rome", "before": " in Ulm, where he"}, "irrelevant"),
    # scripts without spaces
    ("北京是中国的首都", {"target": "北京", "true": ("上海",)}, "right"),
    ("上海是中国的城市", {"target": "北京", "true": ("上海",)}, "unchanged"),
    ("北", {"target": "北京", "true": ("上海",)}, "missing"),
    ("南京。", {"target": "广州", "true": ("上海",)}, "irrelevant"),
]


@pytest.mark.parametrize(("after", "case", "kind"), TABLE)
def test_the_type_of_an_answer(after, case, kind):
    assert error_type(after, **case) == kind


def seen(said, text=None):
    return {"said": said, "text": text}


def test_counts_over_the_records_of_a_run():
    request = {"prompt": "{} is made of", "subject": "It", "target": "limestone"}
    request["ground_truth"] = ["bronze"]
    edit = {"key": "edit", "prompt": "It is made of", "answers": [["limestone"]]}
    rephrase = {"key": "rephrase", "prompt": "What is it? It is", "answers": [["limestone"]]}
    hop = {"key": "portability/reasoning", "prompt": "It weighs", "answers": [["much"], ["a lot"]]}
    near = {"key": "locality/neighborhood", "prompt": "That is made of", "answers": [["bronze"]]}
    records = [
        {
            "place": 0,
            "requests": [request],
            "probes": [
                edit | {"before": seen(" bronze"), "after": seen(" limestone")},
                # the continuation says more than the first choices under the answer's tokens
                rephrase | {"before": seen("x", " bronze."), "after": seen("x", " bronze too")},
                hop | {"before": seen(" little"), "after": seen(" a lot")},
                near | {"before": seen(" bronze"), "after": seen(" bronze")},
            ],
        },
        {
            "place": 1,
            "requests": [request],
            "probes": [
                edit | {"before": seen(" bronze"), "after": seen(" lime")},
                edit | {"before": seen(" bronze"), "after": {}},
            ],
        },
    ]
    judged = list(judge(records))
    assert [(one.place, one.key, one.error) for one in judged] == [
        (0, "edit", "right"),
        (0, "rephrase", "unchanged"),
        (0, "portability/reasoning", "right"),
        (1, "edit", "missing"),
    ]
    found = count(judged)
    assert found["edit"] == dict.fromkeys(TYPES, 0) | {"right": 1, "missing": 1}
    assert set(found) == {"edit", "rephrase", "portability/reasoning"}
    assert count([]) == {}
