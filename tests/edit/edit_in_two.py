"""One of the processes of test_runner.py's job: second moments and edits on a mesh over all."""

import json
import sys
from pathlib import Path

import jax

import jaxedit
from jaxedit import cli
from jaxedit.data.cases import EditRequest
from jaxedit.data.contexts import ContextConfig
from jaxedit.data.documents import Source
from jaxedit.edit.editor import RowsConfig
from jaxedit.edit.runner import run
from jaxedit.edit.stats import StatsConfig
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.memit import MemitConfig
from jaxedit.edit.weights.rome import RomeConfig
from jaxedit.sharding import make_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "editing"


def main(out: Path, alone: bool) -> None:
    if not alone:
        cli.start_distributed()
    mesh = None if alone else make_mesh(tensor=4)
    model = jaxedit.load(GOLDEN / "gpt2-tiny", dtype="float32", mesh=mesh)
    out.mkdir(exist_ok=True)
    texts = json.loads((GOLDEN / "cov_texts.json").read_text())
    texts = [text for text in texts if 40 < len(text) < 60]  # one shape or two
    file = out / f"{jax.process_index()}.jsonl"  # the same text: a name comes from its contents
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    stats = StatsConfig(Source((str(file),)), batch=512, save_every=2, folder=str(out / "stats"))
    rows = json.loads((GOLDEN / "requests.json").read_text())[1:3]
    requests = [EditRequest(r["prompt"], r["subject"], r["target_new"]) for r in rows]
    how = {
        "values": ValueConfig(steps=4, lr=0.5, weight_decay=1e-3),
        "rows": RowsConfig(contexts=ContextConfig()),
        "ridge": 0.01,
    }
    methods = {
        "each": (RomeConfig(layer=0, **how), True),
        "two": (MemitConfig(layers=(0, 1), weight=5.0, **how), False),
    }
    for name, (cfg, independent) in methods.items():
        for i, edit in enumerate(run(model, requests, cfg, independent, stats=stats)):
            if jax.process_index() == 0:
                edit.save(out / f"{name}{i}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "alone" in sys.argv)
