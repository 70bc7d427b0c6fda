"""What comes of an evaluation (cfg: evaluate.task.EvaluateTask): its summary, on a terminal, and as
files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxedit.data.cases import Skipped
from jaxedit.edit.methods import name_of
from jaxedit.evaluate import findings, summary
from jaxedit.evaluate.protocol import Key
from jaxedit.evaluate.records import Records
from jaxedit.files import whole

SUMMARY, TABLE, TIMING = "summary.json", "summary.csv", "timing.json"
REASONS = 20  # of what was left out that the summary tells


def summarise(
    cfg: Any, kept: Records, keys: Sequence[Key], skipped: Sequence[Skipped], name: str
) -> dict[str, Any]:
    found = [kept.found[key] for key in keys if key in kept.found]
    last = [r for r in found if r.get("at", 0) == keys[-1].at]
    reasons = [f"{skip.row}: {skip.reason}" for skip in skipped]
    unasked = [f"{r['id']}: {why}" for r in last for why in r["skipped"]]
    metrics = summary.summarise([r["scores"] for r in last])
    out = {
        "run": kept.digest, "name": name, "method": name_of(cfg.editor), "model": cfg.model,
        "data": ", ".join(cfg.data), "protocol": cfg.ask.protocol, "how": cfg.how,
        "cases": len(last), "failed": sum(bool(r["failed"]) for r in last),
        "skipped": {
            "rows": sum(skip.whole for skip in skipped),
            "parts": sum(not skip.whole for skip in skipped), "probes": len(unasked),
            "elsewhere": sum(r.get("elsewhere", 0) for r in last),
            "reasons": [*reasons, *unasked][:REASONS],
        },
        "metrics": {k: v._asdict() for k, v in metrics.items()},
    } | summary.by_source(last)  # fmt: skip
    if cfg.how == "sequence":
        out |= summary.over_time(found)
        out |= {"drift": drift} if (drift := findings.drift(Path(cfg.workdir), kept.digest)) else {}
    return out


def told(found: Mapping[str, Any]) -> str:
    """A summary for a terminal."""
    left = found["skipped"]
    lines = [summary.table(summary.from_json(found["metrics"]))]
    for source, one in found.get("sources", {}).items():
        means = summary.headline(summary.from_json(one["metrics"])).items()
        shown = ", ".join(f"{title} {mean:.3f}" for title, (mean, *_) in means)
        lines += [f"{source}: {one['cases']:,} cases: {shown}"]
    lines += [f"{found['cases']:,} cases, {found['failed']:,} without an edit; left out: "
              f"{left['rows']:,} rows, {left['parts']:,} parts of rows, "
              f"{left['probes']:,} probes"]  # fmt: skip
    if left["elsewhere"]:
        lines += [f"not asked: {left['elsewhere']:,} locality probes that other edits change"]
    return "\n".join([*lines, *(f"  {reason:.200}" for reason in left["reasons"][:5])])


def write(folder: Path, found: Mapping[str, Any], cfg: Any, spent: Mapping[str, float]) -> None:
    whole(folder / SUMMARY, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    table = [(name, found["method"], one) for name, one in summary.datasets(found, cfg.data)]
    whole(folder / TABLE, summary.survey_csv(table))
    before = json.loads((folder / TIMING).read_text()) if (folder / TIMING).exists() else {}
    total = {k: round(before.get(k, 0) + spent.get(k, 0), 3) for k in {**before, **spent}}
    whole(folder / TIMING, json.dumps(total) + "\n")
