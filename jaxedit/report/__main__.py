"""`jaxedit report RUN …`: the page of an evaluation run, or of several side by side."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxedit import cli
from jaxedit.report import comparison, folder, html, pictures, png, run, survey


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page of an evaluation run, or of several side by side: one file, to be opened in
    a browser; of several also a table, a column for each (.csv, as table 4 of the survey). Of a run
    that has not ended, what there is so far.
    """
    args = parse(argv)
    if len(args.runs) == 1:
        found = folder.read(args.runs[0])
        out = args.out or found.folder / "report.html"
        text, drawn = run.page(found), lambda: pictures.figures(found)
    else:
        several = comparison.read(args.runs)
        out = args.out or Path("comparison.html")
        text, drawn = comparison.page(several), lambda: comparison.figures(several)
    print(f"wrote {html.write(out, text)}")
    if len(args.runs) > 1:
        print(f"wrote {html.write(out.with_suffix('.csv'), survey.table(several))}")
    if args.png:  # after the page, which is there even where these cannot be drawn
        for file in png.write(drawn(), out.parent, out.stem):
            print(f"wrote {file}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    ap = cli.Parser("jaxedit report", description=main.__doc__)
    ap.add_argument("runs", metavar="RUN", nargs="+", help="the work directory of an evaluation")
    ap.add_argument("--out", type=Path, metavar="FILE.html",
                    help="default: RUN/report.html, or comparison.html of several")  # fmt: skip
    ap.add_argument("--png", action="store_true", help="also the pictures, beside the page")
    args = ap.parse_args(argv)
    if args.out and args.out.is_dir():
        raise ValueError(f"--out {args.out} is a folder; give the file to write")
    if args.out and args.out.suffix == ".csv":
        raise ValueError(f"--out {args.out}: give the page's name; the table lies beside it")
    return args


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
