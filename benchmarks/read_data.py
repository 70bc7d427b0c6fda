"""Reads every published dataset in $JAXEDIT_DATA.

    JAXEDIT_DATA=... .venv/bin/python benchmarks/read_data.py         a few seconds

The folders are laid out as tests/data/test_published.py expects them. Claim: at most 30 seconds.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from measure import report

from jaxedit.data.read import read

FOLDERS = {
    "knowedit/wiki_recent": ("knowedit/wiki_recent",),
    "knowedit/wiki_counterfact": ("knowedit/wiki_counterfact",),
    "knowedit/zsre": ("knowedit/ZsRE",),
    "knowedit/wikibio": ("knowedit/WikiBio",),
    "knowedit/convsent": ("knowedit/convsent",),
    "knowedit/sanitation": ("knowedit/Sanitation",),
    "counterfact": ("counterfact",),
    "zsre": ("zsre",),
    "mquake": ("mquake",),
    "known_1000": ("known_1000",),
    "pararel": ("pararel",),
    "mmlu": ("eval/mmlu",),
    "commonsense_qa": ("eval/commonsense_qa",),
    "piqa": ("eval/piqa",),
    "gsm8k": ("eval/gsm8k",),
    "transfer": ("transfer/gsm", "transfer/mmlu"),
}


def main() -> None:
    folder = os.environ.get("JAXEDIT_DATA")
    if not folder:
        sys.exit("JAXEDIT_DATA is not set: the folder of the published datasets")
    counts, rows, parts = {}, 0, 0
    start = time.perf_counter()
    for name, folders in FOLDERS.items():
        found = [read(name, Path(folder, inside)) for inside in folders]
        counts[name] = sum(map(len, found))
        rows += sum(f.rows_skipped for f in found)
        parts += sum(len(f.skipped) - f.rows_skipped for f in found)
    took = time.perf_counter() - start
    files = {f for folders in FOLDERS.values() for g in folders for f in Path(folder, g).iterdir()}
    size = sum(f.stat().st_size for f in files if f.suffix in (".json", ".jsonl", ".gz"))
    report(
        "read the published datasets in at most 30 s",
        seconds=took,
        megabytes=size / 1e6,
        items=sum(counts.values()),
        rows_skipped=rows,
        parts_skipped=parts,
        read=counts,
    )


if __name__ == "__main__":
    main()
