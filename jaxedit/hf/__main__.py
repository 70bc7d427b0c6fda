"""Models between Hugging Face folders and Orbax checkpoints.

    python -m jaxedit.hf import gpt2 runs/gpt2            Hugging Face folder or hub name -> Orbax
    python -m jaxedit.hf export runs/gpt2 gpt2-edited     Orbax -> a folder for transformers

With a mesh (--fsdp -1) every device reads and writes only its own slices. On several hosts the same
command runs on each, with JAXEDIT_DISTRIBUTED=1, which the scripts in launch/ set.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jaxedit import cli
from jaxedit.progress import Meter, is_first


def main(argv: Sequence[str] | None = None) -> None:
    ap = cli.Parser("python -m jaxedit.hf", description=__doc__)
    ap.formatter_class = argparse.RawDescriptionHelpFormatter
    ap.add_argument("direction", choices=("import", "export"))
    ap.add_argument("source", help="a Hugging Face folder or hub name, or a checkpoint")
    ap.add_argument("target", help="the folder to write; must not exist")
    cli.add_placement(ap)
    args = ap.parse_args(argv)
    if cli.is_on("JAXEDIT_DISTRIBUTED"):
        cli.start_distributed()
    if Path(args.target).exists():  # on any host: none has written yet, and reading takes long
        raise FileExistsError(f"{args.target} exists; choose another name")
    from jaxedit.hf.load import load, save_checkpoint
    from jaxedit.hf.save import save
    from jaxedit.models.specs import count

    start = time.time()

    def say(text: str) -> None:
        if is_first():
            print(f"{time.time() - start:6.1f} s  {text}", file=sys.stderr, flush=True)

    mesh = cli.placement(args)
    model = load(args.source, mesh, args.dtype, progress=Meter("reading", "weights"))
    say(f"read {args.source}: {model.cfg.family}, {count(model.cfg):,} parameters")
    if args.direction == "import":
        save_checkpoint(model, args.target)
        say(f"wrote {args.target}, a checkpoint")
    else:
        save(model, args.target, progress=Meter("writing", "bytes"))
        say(f"wrote {args.target}, a Hugging Face folder")


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
