"""Editing, from a config: `python -m jaxedit.edit --config configs/rome.py:gpt-j-6b --set …`, and
`python -m jaxedit.edit stats …` for the second moments alone.

The work directory gets config.json, results.jsonl, and an edit for each request (edits/) or a
sequence of them (ledger/). The same command goes on where a stopped run of independent edits was.
"""

import sys

from jaxedit import cli, settings
from jaxedit.progress import Meter, is_first


def main(argv: list[str]) -> int:
    only_stats = argv[:1] == ["stats"]
    from jaxedit.edit.task import EditTask, begin, go, moments, read

    cfg = cli.parse("edit stats" if only_stats else "edit", argv[1:] if only_stats else argv)
    if not isinstance(cfg, EditTask):
        raise ValueError(f"config() returned a {type(cfg).__name__}; editing takes an EditTask")
    asked = None
    if not only_stats:
        asked = begin(cfg)  # a mistake is told before anything large is read, and before a trace
        settings.dump(cfg, cfg.workdir)
    model = read(cfg, Meter("reading", "weights"))
    stats = moments(cfg, model, Meter("second moments", "batches"))
    if only_stats:
        if is_first():
            told = "this method needs none" if stats is None else f"{stats.folder}"
            print(told if stats is None else f"{told}: {stats.count:,} tokens")
        return 0
    found, skipped = go(cfg, model, stats, Meter("editing", "requests"), asked)
    if is_first():
        print("\n".join(f"  {name:<18}{show(value)}" for name, value in found.items()))
        for skip in skipped[:5]:
            print(f"left out: {skip.row}: {skip.reason}", file=sys.stderr)
        if len(skipped) > 5:
            print(f"and {len(skipped) - 5:,} more left out", file=sys.stderr)
        print(cfg.workdir)
    return 0


def show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))
