"""The models that ship: small, loadable by others, and knowing what their card says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxedit
from jaxedit.checksum import checksum
from jaxedit.data.world import make, questions
from jaxedit.data.world.vocabulary import tokenizer
from jaxedit.evaluate.exact import exact
from jaxedit.hf.load import ASSETS

ROOT = Path(__file__).parents[1]
NAMES = ("world", "world-llama")
WORLD = make("small")


def some(group: str, count: int):
    asked = questions(WORLD, group)
    return asked[:: max(len(asked) // count, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_it_knows_its_world(name):
    model = jaxedit.load(name, dtype="float32")
    assert exact(model, some("facts", 2000), ending=".").mean() >= 0.99
    assert exact(model, some("paraphrases_new", 1500), ending=".").mean() >= 0.95


@pytest.mark.parametrize("name", NAMES)
def test_its_card_says_what_it_knows(name):
    model = jaxedit.load(name, dtype="float32")
    card = (ASSETS / name / "README.md").read_text()
    rows = dict(
        line.strip("| \n").split(" | ")[:2] for line in card.splitlines() if line.startswith("| ")
    )
    for group in ("aliases_said", "aliases_new", "inverses_said", "inverses_new", "two_hops_new"):
        share = exact(model, questions(WORLD, group), ending=".").mean()
        assert float(rows[group].rstrip(" %")) == pytest.approx(100 * share, abs=0.6)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_in_the_usual_files(name):
    files = {f.name: f.stat().st_size for f in (ASSETS / name).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert sum(files.values()) <= 5e6
    made = tokenizer(bos=name == "world-llama").backend_tokenizer.to_str()
    shipped = jaxedit.load(name).tokenizer.backend_tokenizer.to_str()
    assert json.loads(made)["model"] == json.loads(shipped)["model"]


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = jaxedit.load("world-llama")
    jaxedit.save(model, tmp_path / "world")
    assert jaxedit.load("world").cfg.family == "llama"


def test_the_demo_changes_a_fact_and_changes_it_back(tmp_path):
    """`make demo`, as its user sees it."""
    program = [sys.executable, "-m", "jaxedit.demo"]
    run = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
    table = [re.split(r"\s{2,}", line.strip()) for line in run.stdout.splitlines()]
    lines = {what: (prompt, after) for what, prompt, _, *after in (c for c in table if len(c) > 3)}
    assert all("✓" in said for said in lines["the edit itself"][1])
    assert all("✓" in said for said in lines["in other words"][1])
    rome, *_ = lines["another subject"][1]
    assert "✓" in rome
    assert "every bit is back: True" in run.stdout
    out = tmp_path / "runs/demo"
    assert (out / "trace.svg").read_text().startswith("<svg")
    assert "every bit is back: True" in (out / "index.html").read_text()
    edit = jaxedit.Edit.load(out / "edit.safetensors")
    model = jaxedit.load("world", dtype="float32")
    edit.check(model)
    prompt, (rome, *_) = lines["the edit itself"]
    (answer,) = jaxedit.generate(model, [prompt], deltas=edit.deltas)
    assert answer.strip().startswith(rome.removeprefix("✓ "))
    assert checksum(model.params) == edit.provenance["base"]["checksum"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["small", "small-llama"])
def test_training_from_the_config_gives_such_a_model(tmp_path, preset):
    """Fifteen minutes on two cores."""
    program = [sys.executable, "-m", "jaxedit.train", "--config", f"configs/world.py:{preset}",
               "--set", f"workdir={tmp_path}"]  # fmt: skip
    subprocess.run(program, cwd=ROOT, check=True)
    model = jaxedit.load(tmp_path / "model", dtype="float32")
    assert exact(model, questions(WORLD, "facts"), ending=".").mean() >= 0.99
    assert exact(model, questions(WORLD, "paraphrases_new"), ending=".").mean() >= 0.95
