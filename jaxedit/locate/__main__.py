"""Locating, from a config: `python -m jaxedit.locate --config configs/trace.py:world --set …`.

Traces facts, or (configs/neurons.py) compares what finders of neurons find. The work directory gets
a record for each fact, summary.json, pictures and a page. The same command goes on where a stopped
run was.
"""

from pathlib import Path
from typing import Any

from jaxedit import cli, settings
from jaxedit.progress import Meter, is_first


def main() -> int:
    from jaxedit.locate import compare, task
    from jaxedit.report import neurons, traces

    cfg = cli.parse("locate")
    kinds: dict[type, Any] = {task.TraceTask: (task.run, traces.write, "tracing", "facts"),
             compare.CompareTask: (compare.run, neurons.write, "comparing", "steps")}  # fmt: skip
    if type(cfg) not in kinds:
        raise ValueError(
            f"config() returned a {type(cfg).__name__}; locating takes a TraceTask or CompareTask"
        )
    settings.dump(cfg, cfg.workdir)
    run, write, what, unit = kinds[type(cfg)]
    summary = run(cfg, Meter(what, unit))
    if is_first():
        print("\n".join(write(summary, Path(cfg.workdir))))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
