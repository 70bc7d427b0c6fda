"""Locating, from a config: `python -m jaxedit.locate --config configs/trace.py:world --set …`.

The work directory gets cases.jsonl, summary.json, a picture for each kind of state and trace.html.
The same command goes on where a stopped run was.
"""

from pathlib import Path

from jaxedit import cli, settings
from jaxedit.progress import Meter, is_first


def main() -> int:
    from jaxedit.locate.task import TraceTask, run
    from jaxedit.report import bounds, traces

    cfg = cli.parse("locate")
    if not isinstance(cfg, TraceTask):
        raise ValueError(f"config() returned a {type(cfg).__name__}; locating takes a TraceTask")
    settings.dump(cfg, cfg.workdir)
    summary = run(cfg, Meter("tracing", "facts"))
    if not is_first():
        return 0
    told = traces.words(summary)
    print(told)
    if summary["known"]:
        folder, drawn = Path(cfg.workdir), traces.of_summary(summary)
        files = [traces.page(f"Causal tracing of {cfg.model}", told, drawn, folder / "trace.html")]
        for kind, one in drawn.items():
            files += bounds.save(one, folder, f"trace-{kind}")
        for file in files:
            print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
