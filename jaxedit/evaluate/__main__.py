"""Evaluation, from a config.

    python -m jaxedit.evaluate --config configs/knowedit.py:world-rome    edits, by their cases
    python -m jaxedit.evaluate --config configs/ability.py:world          what a model can do at all
    python -m jaxedit.evaluate harness --model_args model=world,edit=FILE --tasks …    lm_eval's own

A run of edits goes on where it was stopped. Its work directory gets config.json, cases.jsonl,
summary.json, summary.csv, analysis.json, timing.json and report.html; an examination's gets
ability.json.
"""

import json
import sys
from pathlib import Path

from jaxedit import cli, settings
from jaxedit.files import whole
from jaxedit.progress import Meter, is_first


def main(argv: list[str]) -> int:
    if argv[:1] == ["harness"]:
        from jaxedit.evaluate import harness

        harness.main(argv[1:])
        return 0
    from jaxedit.edit.record import Edit
    from jaxedit.evaluate import ability, outcome, task
    from jaxedit.hf.load import load
    from jaxedit.report import run as page

    cfg = cli.parse("evaluate", argv)
    if not isinstance(cfg, task.EvaluateTask | ability.AbilityTask):
        raise ValueError(
            f"config() returned a {type(cfg).__name__}; this takes an EvaluateTask or AbilityTask"
        )
    settings.dump(cfg, cfg.workdir)
    model = load(cfg.model, cfg.mesh.make(), cfg.dtype, progress=Meter("reading", "weights"))
    if isinstance(cfg, ability.AbilityTask):
        edit = Edit.load(cfg.edit) if cfg.edit else None
        found = ability.measure(model, cfg.ability, edit, Meter("asking", "rows"))
        if is_first():
            whole(Path(cfg.workdir, "ability.json"), json.dumps(found, indent=1) + "\n")
            print(f"{ability.table(found)}\n{cfg.workdir}/ability.json")
        return 0
    name = argv[argv.index("--config") + 1] if "--config" in argv else ""
    found = task.go(cfg, model, progress=Meter("evaluating", "cases"), name=name,
                    collecting=Meter("second moments", "batches"))  # fmt: skip
    if is_first():
        print(f"{outcome.told(found)}\n{page.write(cfg.workdir)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))
