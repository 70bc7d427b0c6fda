"""Every shipped configuration can be loaded, shown and changed from the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxedit import settings
from jaxedit.bounds.bits import BitsConfig
from jaxedit.bounds.certificate import BoundConfig
from jaxedit.bounds.fit import SubspaceTask
from jaxedit.bounds.sweep import SweepConfig, configs
from jaxedit.edit.methods import EDITORS, name_of
from jaxedit.edit.task import EditTask
from jaxedit.evaluate.ability import AbilityTask
from jaxedit.evaluate.task import EvaluateTask
from jaxedit.locate.compare import CompareTask
from jaxedit.locate.task import TraceTask
from jaxedit.train.editor import EditorConfig
from jaxedit.train.loop import TrainConfig

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))
ALL = [f"{f}:{preset}" for f in FILES for preset in settings.load(str(f))[1]]
LOADED = {spec: settings.load(spec)[0] for spec in ALL}
of = lambda kind: [spec for spec, cfg in LOADED.items() if isinstance(cfg, kind)]
TRAIN, EDIT, EVALUATE, ABILITY = map(of, (TrainConfig, EditTask, EvaluateTask, AbilityTask))
BOUND, SWEEP, TRACE = map(of, (BoundConfig, SweepConfig, TraceTask))
COMPARE, BITS = of(CompareTask), of(BitsConfig)
EDITOR = [spec for spec in TRAIN if isinstance(LOADED[spec].task, EditorConfig)]
SUBSPACE = [spec for spec in TRAIN if isinstance(LOADED[spec].task, SubspaceTask)]
LANGUAGE = [spec for spec in TRAIN if spec not in EDITOR + SUBSPACE]
short = lambda spec: Path(spec).name


@pytest.mark.parametrize("spec", EDITOR, ids=short)
def test_a_preset_of_a_trained_editor_loads_and_can_be_changed(spec):
    cfg = LOADED[spec]
    changed = settings.override(
        cfg,
        ["loop.steps=7", "task.batch=4", "task.lessons.sources=a.jsonl", "task.editor.trained="],
    )
    assert (changed.loop.steps, changed.task.batch) == (7, 4)
    assert changed.task.lessons.sources == ("a.jsonl",)
    assert EDITORS[name_of(cfg.task.editor)].make(cfg.task.editor).learner is not None


@pytest.mark.parametrize("spec", LANGUAGE, ids=short)
def test_a_preset_of_training_loads_and_can_be_changed(spec):
    cfg = LOADED[spec]
    changed = settings.override(cfg, ["loop.steps=7", "task.optimizer.lr=0.5", "task.mesh.data=2"])
    assert changed.loop.steps == 7
    assert changed.task.optimizer.lr == 0.5
    assert changed.task.mesh.data == 2
    assert settings.override(
        cfg, ["task.text.source.paths=(a.jsonl,b.txt)"]
    ).task.text.source.paths == (
        "a.jsonl",
        "b.txt",
    )
    assert "task.model.layers" in settings.table(cfg)


@pytest.mark.parametrize("spec", EDIT, ids=short)
def test_a_preset_of_editing_loads_and_can_be_changed(spec):
    cfg = LOADED[spec]
    assert isinstance(cfg, EditTask)
    changed = settings.override(cfg, ["limit=3", "mesh.fsdp=2", "stats.text.paths=(a.txt,)"])
    assert (changed.limit, changed.mesh.fsdp, changed.stats.text.paths) == (3, 2, ("a.txt",))
    EDITORS[name_of(cfg.editor)].make(cfg.editor)  # an editor can be made of it


@pytest.mark.parametrize("spec", EVALUATE, ids=short)
def test_a_preset_of_evaluation_loads_and_can_be_changed(spec):
    cfg = LOADED[spec]
    changed = settings.override(cfg, ["limit=3", "data=counterfact:a.json", "ask.say=8", "at=1,5"])
    assert (changed.limit, changed.data, changed.ask.say) == (3, ("counterfact:a.json",), 8)
    assert changed.at == (1, 5)
    EDITORS[name_of(cfg.editor)].make(cfg.editor)


@pytest.mark.parametrize("name", ["knowedit.py:zsre-memit", "continual.py:mixed-memit"])
def test_a_preset_of_evaluation_may_name_the_model(name):
    spec = f"{ROOT}/configs/{name}"
    plain, other = (settings.load(x)[0] for x in (spec, f"{spec}@gpt2-xl"))
    assert (plain.data, plain.how) == (other.data, other.how)
    assert plain.model != other.model == "openai-community/gpt2-xl"
    assert plain.editor != other.editor
    assert plain.workdir != other.workdir
    with pytest.raises(ValueError, match="preset 'gpt5': one of gpt2-medium, "):
        settings.load(f"{spec}@gpt5")


@pytest.mark.parametrize("spec", ABILITY, ids=short)
def test_a_preset_of_examination_loads_and_can_be_changed(spec):
    cfg = LOADED[spec]
    changed = settings.override(cfg, ["edit=a.safetensors", "ability.sets=(piqa:a,mmlu:b@test)"])
    assert (changed.edit, changed.ability.sets) == ("a.safetensors", ("piqa:a", "mmlu:b@test"))


@pytest.mark.parametrize("spec", BOUND + SUBSPACE, ids=short)
def test_a_preset_of_a_bound_loads_and_can_be_changed(spec):
    cfg = LOADED[spec]
    lead = "task." if spec in SUBSPACE else ""
    changed = settings.override(cfg, [f"{lead}fit.steps=7", f"{lead}sample.text.paths=(a.jsonl,)"])
    task = changed.task
    assert (task.fit.steps, task.sample.text.paths) == (7, ("a.jsonl",))


@pytest.mark.parametrize("spec", TRACE, ids=short)
def test_a_preset_of_tracing_loads_and_can_be_changed(spec):
    changed = settings.override(LOADED[spec], ["facts=a.jsonl", "kinds=mlp,attn", "limit=3"])
    assert (changed.facts, changed.kinds, changed.limit) == ("a.jsonl", ("mlp", "attn"), 3)


@pytest.mark.parametrize("spec", BITS, ids=short)
def test_a_preset_of_bits_loads_and_can_be_changed(spec):
    changed = settings.override(LOADED[spec], ["methods=rome,kn", "bounded=2", "sample.draws=9"])
    assert (changed.methods, changed.bounded, changed.sample.draws) == (("rome", "kn"), 2, 9)


@pytest.mark.parametrize("spec", COMPARE, ids=short)
def test_a_preset_of_neurons_loads_and_can_be_changed(spec):
    changed = settings.override(LOADED[spec], ["facts=pararel:x", "finders=kn,random", "ks=7,"])
    assert (changed.facts, changed.finders, changed.ks) == ("pararel:x", ("kn", "random"), (7,))


@pytest.mark.parametrize("spec", SWEEP, ids=short)
def test_every_variant_of_a_sweep_is_a_config(spec):
    cfg = settings.override(LOADED[spec], ["base.sample.text.paths=(a.jsonl,)"])
    made = configs(cfg)
    assert len(made) == len(cfg.variants) > 1
    for one in made.values():
        assert one.sample.text.paths == ("a.jsonl",)
        assert one.claim.candidates == len(made)
    assert len({repr(one) for one in made.values()}) == len(made)


KINDS = (TRAIN, EDIT, EVALUATE, ABILITY, BOUND, SWEEP, TRACE, COMPARE, BITS)


def test_every_preset_is_of_some_command():
    assert len(ALL) == sum(map(len, KINDS))


def test_every_config_says_how_it_is_run():
    for file in FILES:
        text = file.read_text()
        assert f"--config configs/{file.name}:" in text.split('"""')[1]


def test_the_command_shows_a_config():
    command = [sys.executable, "-m", "jaxedit.train", "--config", TRAIN[0], "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "task.optimizer.lr" in out
    command = [*command[:-1], "--set", "lrr=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no field 'lrr'" in done.stderr
