"""Small folders of evaluation runs, as `jaxedit.evaluate` leaves them."""

import json
from pathlib import Path


def probe(key, right, prompt="Ann was born in", said="Rome", **more):
    before = {"said": "Paris", "text": None, "token": 0.0, "exact": False, "logp": -3.25}
    after = {"said": said, "text": None, "token": 1.0, "exact": bool(right), "logp": -0.5}
    return {
        "key": key, "prompt": prompt, "answers": [["Rome", "Roma"]], "group": "", "rule": "all",
        "before": before, "after": after, "agreement": None, "kl": None, "right": right,
    } | more  # fmt: skip


def record(place, id, rights, scores=None, **more):
    """A case whose probes of these keys came out right, wrong or unjudged."""
    return {
        "place": place,
        "id": id,
        "requests": [
            {"prompt": "{} was born in", "subject": f"Ann {id}", "target": "Rome",
             "ground_truth": ["Paris"]}
        ],
        "info": {"relation": "birthplace"},
        "failed": [],
        "skipped": [],
        "edit": {"norm": 1.25},
        "probes": [probe(key, right) for key, right in rights.items()],
        "continued": [],
        "scores": scores or {},
    } | more  # fmt: skip


def interval(mean, low, high, n=4):
    return {"mean": mean, "low": low, "high": high, "n": n}


class Folder:
    """Writes the files of a run; what is None is not written."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir()

    def __call__(self, cases, summary=None, config=None, timing=None, analysis=None):
        lines = [{"run": "abc"}, *cases]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.path / "cases.jsonl").write_text(text)
        for name, content in (("summary", summary), ("config", config), ("timing", timing),
                              ("analysis", analysis)):  # fmt: skip
            if content is not None:
                (self.path / f"{name}.json").write_text(json.dumps(content))
        return self.path
