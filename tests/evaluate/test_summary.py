"""Many cases as one table."""

import csv
import json
import math

import numpy as np
import pytest

from jaxedit.evaluate import summary
from jaxedit.evaluate.metrics import Interval
from jaxedit.evaluate.summary import as_json, from_json, headline, summarise, survey_csv, table

THREE = summary.SCORED


def at(mean, n=10):
    return Interval(mean, mean - 0.1, mean + 0.1, n)


def test_a_mean_is_over_the_cases_that_have_the_metric():
    cases = [
        {"edit_success/token": 1.0, "portability/token": 0.5},
        {"edit_success/token": 0.5},
        {"edit_success/token": 0.0, "portability/token": 1.0},
        {},
    ]
    found = summarise(cases)
    assert found["edit_success/token"].mean == 0.5
    assert found["edit_success/token"].n == 3
    assert found["portability/token"] == Interval(0.75, 0.5, 1.0, 2)
    assert 0 <= found["edit_success/token"].low < 0.5 < found["edit_success/token"].high <= 1
    assert summarise(cases) == found
    assert summarise([]) == summarise([{}]) == {}
    # which cases come first is chance: the mean does not depend on it
    assert summarise(cases[::-1])["edit_success/token"].mean == 0.5


def test_what_could_not_be_computed_must_not_stand_there():
    with pytest.raises(ValueError, match="fluency of case 1 is nan"):
        summarise([{"fluency": 1.0}, {"fluency": math.nan}])


def test_metrics_come_in_the_order_of_reports():
    names = ["fluency", "ripple/preservation", "locality/distracting/agreement", "new/one",
             "locality/exact", "generalization/token", "edit_success/token"]  # fmt: skip
    found = summarise([dict.fromkeys(names, 0.5)])
    assert list(found) == [
        "edit_success/token", "generalization/token", "locality/exact",
        "locality/distracting/agreement", "ripple/preservation", "fluency", "new/one",
    ]  # fmt: skip


def test_the_score_of_counterfact_is_the_harmonic_mean_of_means():
    cases = [dict(zip(THREE, values, strict=True)) for values in ((1, 1, 0.2), (1, 0, 0.6))]
    found = summarise(cases)["counterfact/score"]
    assert found.mean == pytest.approx(3 / (1 / 1 + 1 / 0.5 + 1 / 0.4))
    assert found.n == 2
    # the second case drawn twice has the least: no paraphrase; each drawn once has the most
    assert (found.low, found.high) == (0, found.mean)
    assert "counterfact/score" not in summarise([dict.fromkeys(THREE[:2], 1.0)])
    # a case without neighbours counts for the other two
    some = summarise([*cases, {THREE[0]: 0.0}])["counterfact/score"]
    assert some.mean == pytest.approx(3 / (3 / 2 + 1 / 0.5 + 1 / 0.4))
    assert some.n == 2
    assert summarise([dict.fromkeys(THREE, 1.0)])["counterfact/score"] == Interval(1, 1, 1, 1)


def test_the_interval_of_the_score_resamples_whole_cases():
    rng = np.random.default_rng(0)
    shared = rng.random(200)
    together = [dict.fromkeys(THREE, float(s)) for s in shared]
    alone = [dict(zip(THREE, rng.permutation(shared)[:3].tolist(), strict=True)) for _ in shared]
    width = lambda cases: np.ptp(summarise(cases)["counterfact/score"][1:3])
    assert width(together) > 1.4 * width(alone)  # √3 if the three were independent


def test_the_columns_of_knowedit():
    plain = {"edit_success/token": at(0.9), "portability/token": at(0.5), "fluency": at(5.8)}
    plain |= {"locality/agreement": at(0.6), "generalization/token": at(0.7)}
    assert headline(plain) == {
        "Edit Succ.": at(0.9), "Portability": at(0.5), "Locality": at(0.6), "Fluency": at(5.8),
    }  # fmt: skip
    opinions = plain | {"convsent/expression": at(0.4), "convsent/drift": at(0.02)}
    assert headline(opinions)["Edit Succ."] == at(0.4)
    assert headline(opinions)["Locality"] == at(0.02)
    refusals = plain | {"sanitation/forget": at(0.3)}
    assert headline(refusals)["Edit Succ."] == at(0.3)
    assert headline({}) == {}


def test_the_table_shows_shares_in_percent():
    lines = table(
        {"edit_success/token": Interval(0.975, 0.95, 1.0, 1301), "locality/unrelated/kl":
         Interval(0.0123, 0.01, 0.02, 7), "fluency_before": Interval(5.8, 5.75, 5.9, 12)}
    ).splitlines()  # fmt: skip
    assert lines[0].split() == ["metric", "mean", "95%", "interval", "cases"]
    assert lines[1].split() == ["edit_success/token", "97.5", "%", "95.0", "to", "100.0", "1,301"]
    assert lines[2].split() == ["locality/unrelated/kl", "0.012", "0.010", "to", "0.020", "7"]
    assert lines[3].split() == ["fluency_before", "5.800", "5.750", "to", "5.900", "12"]
    assert len({len(line) for line in lines}) == 1
    for name in ("convsent/drift", "perplexity", "fluency"):
        assert not summary.is_share(name)
    for name in ("consistency", "edit_success/magnitude", "counterfact/score", "mquake/multi_hop"):
        assert summary.is_share(name)


def test_a_difference_of_probabilities_is_no_percentage():
    found = {"edit_success/magnitude": Interval(0.5, -0.25, 0.75, 4)}
    shown = table(found).splitlines()[1].split()
    assert shown == ["edit_success/magnitude", "0.500", "-0.250", "to", "0.750", "4"]


def test_the_csv_has_the_layout_of_the_survey():
    zsre = {
        "edit_success/token": at(0.9677),
        "locality/agreement": at(0.5367),
        "fluency": at(5.7375),
    }
    made = survey_csv(
        [
            ("mine", "rome", {"edit_success/token": at(0.5)}),
            ("knowedit/zsre", "rome", zsre),
            ("knowedit/wiki_recent", "memit", zsre | {"portability/token": at(0.25)}),
            ("knowedit/zsre", "memit", {"edit_success/token": at(0.9537)}),
        ]
    )
    assert list(csv.reader(made.splitlines())) == [
        ["DataSet", "Metric", "rome", "memit"],
        ["WikiData_recent", "Edit Succ.", "", "96.77"],
        ["WikiData_recent", "Portability", "", "25.00"],
        ["WikiData_recent", "Locality", "", "53.67"],
        ["WikiData_recent", "Fluency", "", "573.75"],
        ["ZsRE", "Edit Succ.", "96.77", "95.37"],
        ["ZsRE", "Locality", "53.67", ""],
        ["ZsRE", "Fluency", "573.75", ""],
        ["mine", "Edit Succ.", "50.00", ""],
    ]
    with pytest.raises(ValueError, match="two runs of rome on mine"):
        survey_csv([("mine", "rome", zsre)] * 2)


def test_json_keeps_everything():
    found = summarise([{"fluency": 5.5, "edit_success/token": 1.0}, {"fluency": 5.25}])
    text = json.dumps(as_json(found))
    assert json.loads(text)["fluency"] == {"mean": 5.375, "low": 5.25, "high": 5.5, "n": 2}
    assert from_json(json.loads(text)) == found
    shuffled = json.loads(json.dumps(as_json(found), sort_keys=True))
    assert list(from_json(dict(reversed(shuffled.items())))) == list(found)
