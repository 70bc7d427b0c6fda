"""Evaluation, from a config: `python -m jaxedit.evaluate --config configs/knowedit.py:zsre-rome`.

The same command goes on where a stopped run was. The work directory gets config.json, cases.jsonl,
summary.json, summary.csv, timing.json and report.html.
"""

import sys

from jaxedit import cli, settings
from jaxedit.progress import Meter, is_first


def main(argv: list[str]) -> int:
    from jaxedit.evaluate import summary
    from jaxedit.evaluate.task import EvaluateTask, go
    from jaxedit.hf.load import load
    from jaxedit.report import run as page

    cfg = cli.parse("evaluate", argv)
    if not isinstance(cfg, EvaluateTask):
        raise ValueError(f"config() returned a {type(cfg).__name__}; this takes an EvaluateTask")
    settings.dump(cfg, cfg.workdir)
    model = load(cfg.model, cfg.mesh.make(), cfg.dtype, progress=Meter("reading", "weights"))
    name = argv[argv.index("--config") + 1] if "--config" in argv else ""
    found = go(cfg, model, progress=Meter("evaluating", "cases"), name=name)
    if is_first():
        print(summary.table({k: summary.Interval(**v) for k, v in found["metrics"].items()}))
        left = found["skipped"]
        print(f"{found['cases']:,} cases, {found['failed']:,} without an edit; left out: "
              f"{left['rows']:,} rows, {left['probes']:,} probes")  # fmt: skip
        print("\n".join(f"  {reason}" for reason in left["reasons"][:5]))
        print(page.write(cfg.workdir))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))
