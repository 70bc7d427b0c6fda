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
    settings.check_local(cfg.workdir)
    task = cfg.task.task(cfg.loop.steps, Meter("tokenising", "bytes"))
    # only then, so that a run that is refused leaves the config of the one that is there
    begun = lambda: settings.dump(cfg, cfg.workdir)
    each = (task.tokens, "tokens") if task.tokens else (1, "steps")
    meter = Meter("training", "steps", each=each)
    state, step = run(task, cfg.loop, cfg.workdir, begun=begun, progress=meter)
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
