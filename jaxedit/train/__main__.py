"""Training, from a config: `python -m jaxedit.train --config configs/world.py:small --set …`.

The work directory gets config.json, metrics.jsonl, checkpoints/ and, at the end, what was trained.
The same command goes on where a stopped run was; SIGTERM saves first.
"""

import sys
from pathlib import Path

from jaxedit import cli, memory, settings
from jaxedit.progress import Meter, is_first


def main() -> int:
    memory.keep()
    from jaxedit.train.loop import TrainConfig, run

    cfg = cli.parse("train")
    if not isinstance(cfg, TrainConfig):
        raise ValueError(f"config() returned a {type(cfg).__name__}; training takes a TrainConfig")
    settings.dump(cfg, cfg.workdir)
    task = cfg.task.task(cfg.loop.steps, Meter("tokenising", "bytes"))
    state, step = run(task, cfg.loop, cfg.workdir, progress=Meter("training", "steps"))
    if step < cfg.loop.steps:
        if is_first():
            print(f"stopped at step {step}, saved; the same command goes on", file=sys.stderr)
        return 143  # what a shell reports of a program that SIGTERM ended
    if task.finish:
        made = task.finish(state, Path(cfg.workdir))
        if is_first():
            print(made)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
