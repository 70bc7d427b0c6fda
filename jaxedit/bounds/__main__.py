"""Bounds, from a config: `python -m jaxedit.bounds --config configs/sublora.py:eltec --set …`.

The work directory gets certificate.json, hypothesis.bin (the bytes that the bound pays for),
bound.svg, and the training that led to them. The same command goes on where a stopped run was.
`jaxedit bound verify CERTIFICATE` decodes the bytes and states everything again.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from jaxedit import cli, settings
from jaxedit.progress import Meter, is_first


def main() -> int:
    from jaxedit.bounds import bits, sweep
    from jaxedit.bounds.certificate import BoundConfig, run
    from jaxedit.report import bounds

    cfg = cli.parse("bounds")
    if isinstance(cfg, sweep.SweepConfig):
        settings.dump(cfg, cfg.workdir)
        made = sweep.run(cfg, Meter)
        if is_first():
            print(bounds.table(made))
            wrote(bounds.several(made, Path(cfg.workdir), cfg.across))
        return 0
    settings.dump(cfg, cfg.workdir)
    if isinstance(cfg, bits.BitsConfig):
        found = bits.run(cfg, Meter("describing", "edits"))
        if is_first():
            print(bounds.edits(found))
            wrote(bounds.by_method(found, Path(cfg.workdir)))
        return 0
    if not isinstance(cfg, BoundConfig):
        raise ValueError(f"config() returned a {type(cfg).__name__}; bounds take a BoundConfig")
    one = run(cfg, Meter)
    if is_first():
        print(bounds.words(one))
        wrote(bounds.by_alpha(one, Path(cfg.workdir)))
    return 0


def wrote(files: Iterable[Path]) -> None:
    for file in files:
        print(f"wrote {file}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
