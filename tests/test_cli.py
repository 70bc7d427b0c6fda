import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from jaxedit import cli, settings

CONFIG = """
from __future__ import annotations
import dataclasses
from typing import Any, Literal

@dataclasses.dataclass(frozen=True)
class Rome:
    layer: int = 17
    lr: float = 0.5
    clamp: float | None = 4.0
    norm: Literal["l2", "none"] = "l2"

@dataclasses.dataclass(frozen=True)
class Ike:
    demos: int = 16

@dataclasses.dataclass(frozen=True)
class Range:
    low: int = 0
    high: int = 10
    def __post_init__(self):
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")

@dataclasses.dataclass(frozen=True)
class Needy:
    count: int

@dataclasses.dataclass(frozen=True)
class Run:
    model: str = "gpt2-xl"
    editor: Rome | Ike = Rome()
    layers: Range = Range()
    extra: Rome | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    needy: Needy | None = None
    seeds: tuple[int, ...] = (0,)
    sites: tuple[str, ...] = ("mlp_out",)
    mesh: tuple[int, int] = (1, 1)
    axes: tuple[tuple[str, int], ...] = ()
    save: bool = True
    limit: int | float | None = None
    tag: str | None = None
    dtype: str = "float32"
    options: dict = dataclasses.field(default_factory=dict)
    anything: Any = None

PRESETS = {"gpt2-xl": Rome(), "gpt-j-6b": Rome(layer=5), "ike": Ike()}

def config(model="gpt2-xl"):
    return Run(model=model, editor=PRESETS[model])
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXEDIT_TRACEBACK", raising=False)
    monkeypatch.delenv("JAXEDIT_DISTRIBUTED", raising=False)
    path = tmp_path / "run.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def refuse(capsys):
    """Calls a function that must end with exit code 2, and returns its one line."""

    def call(function, *args):
        with pytest.raises(SystemExit) as stop:
            function(*args)
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("jaxedit: error: ")
        return err

    return call


def parse(file, *settings):
    return cli.parse("edit", ["--config", file, *(["--set", *settings] if settings else [])])


def test_a_preset_and_repeated_settings(file):
    argv = [
        "--config",
        f"{file}:gpt-j-6b",
        "--set",
        "editor.lr=2",
        "save=false",
        "--set",
        "tag=a=b",
    ]
    cfg = cli.parse("edit", argv)
    assert (cfg.model, cfg.editor.layer) == ("gpt-j-6b", 5)
    assert (cfg.editor.lr, cfg.save, cfg.tag) == (2.0, False, "a=b")
    assert parse(file).editor.layer == 17
    assert dataclasses.asdict(parse(file, "save=false")) == {
        **dataclasses.asdict(parse(file)),
        "save": False,
    }


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("editor.layer=7", 7),
        ("editor.lr=1e-4", 1e-4),
        ("editor.lr=3", 3.0),
        ("editor.lr=inf", float("inf")),
        ("editor.clamp=none", None),
        ("editor.clamp=2", 2.0),
        ("editor.norm=none", "none"),
        ("model=7", "7"),
        ("model=none", "none"),
        ("model=", ""),
        ("model=The capital of {} is, they say", "The capital of {} is, they say"),
        ("model='quoted'", "'quoted'"),
        ("tag=None", None),
        ("tag=12", "12"),
        ("limit=3", 3),
        ("limit=0.5", 0.5),
        ("save=True", True),
        ("save=false", False),
        ("seeds=1,2,3", (1, 2, 3)),
        ("seeds=(1, 2)", (1, 2)),
        ("seeds=[4]", (4,)),
        ("seeds=5", (5,)),
        ("seeds=", ()),
        ("sites=mlp/out,attn-out", ("mlp/out", "attn-out")),
        ("sites=1,2", ("1", "2")),
        ("sites=one", ("one",)),
        ("mesh=2,4", (2, 4)),
        ("axes=(('data', 4), ('model', 2))", (("data", 4), ("model", 2))),
        ("dtype=bfloat16", "bfloat16"),
        ("options={'a': 1}", {"a": 1}),
        ("anything=[1]", (1,)),
        ("tag={[]: 1}", "{[]: 1}"),
        ("extra=none", None),
        ("extra.layer=3", 3),
        ("extra.clamp=none", None),
    ],
)
def test_text_becomes_the_type_of_the_field(file, setting, value):
    got = parse(file, setting)
    for name in setting.partition("=")[0].split("."):
        got = getattr(got, name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("editor.lr=fast", ["editor.lr=fast", "float", "'fast'"]),
        ("editor.layer=1.5", ["int", "'1.5'"]),
        ("editor.layer=true", ["int", "'true'"]),
        ("editor.norm=l3", ["'l2'", "'none'", "'l3'"]),
        ("editor.norm=non", ["editor.norm=non: 'non': one of 'l2', 'none'; did you mean 'none'?"]),
        ("precision=bflot16", ["'float32', 'bfloat16', 'none'; did you mean 'bfloat16'?"]),
        ("extra.layr=3", ["no field 'extra.layr'", "did you mean extra.layer"]),
        ("extra.layer=x", ["expected int, got 'x'"]),
        ("needy.count=3", ["no field 'needy.count'"]),
        ("save=1", ["bool", "'1'"]),
        ("save=yes", ["bool", "'yes'"]),
        ("seeds=1,x", ["tuple[int, ...]", "'1,x'"]),
        ("mesh=1,2,3", ["tuple[int, int]", "'1,2,3'"]),
        ("dtype=float23", ["'bfloat16'", "'float23'"]),
        ("limit=some", ["int | float | None", "'some'"]),
        ("editor.layer", ["missing '='", "editor.layer=VALUE"]),
        ("editor.laier=1", ["no field 'editor.laier'", "did you mean", "editor.layer"]),
        ("layer=1", ["no field 'layer'", "did you mean editor.layer?"]),
        ("xyzzy=1", ["no field 'xyzzy'", "model", "editor.norm"]),
        ("editor=rome", ["editor.layer", "editor.norm"]),
        ("layers.low=11", ["low=11 is above high=10"]),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(file, refuse, setting, words):
    message = refuse(parse, file, setting)
    assert all(word in message for word in words), message


def test_settings_that_belong_together_are_checked_together(file):
    layers = parse(file, "layers.low=20", "layers.high=30").layers
    assert (layers.low, layers.high) == (20, 30)


def test_fields_follow_the_class_that_the_preset_chose(file, refuse):
    assert parse(f"{file}:ike", "editor.demos=8").editor.demos == 8
    assert "no field 'editor.layer'" in refuse(parse, f"{file}:ike", "editor.layer=8")


def test_an_unknown_preset_lists_the_known_ones(file, refuse):
    assert "did you mean gpt-j-6b?" in refuse(parse, f"{file}:gpt-j-6")
    message = refuse(parse, f"{file}:llama")
    assert all(name in message for name in ("gpt2-xl", "gpt-j-6b", "ike"))


HEAD = """import dataclasses
@dataclasses.dataclass(frozen=True)
class Run:
    seeds: tuple[int, ...] = (0,)
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", ["no function config"]),
        ("def config(): return {}", ["must return a dataclass", "{}"]),
        ("def config(:", ["line 1", "SyntaxError"]),
        ("x = 1\nimport no_such_module", ["line 2", "ModuleNotFoundError", "no_such_module"]),
        ("def config():\n    return nothing", ["line 2", "NameError", "nothing"]),
        ("PRESETS = ['a', 'b']\ndef config(preset): pass", ["presets: a, b", "preset"]),
        (HEAD + "def config(): return Run(seeds=(5))", ["seeds", "tuple[int, ...]", "got 5"]),
        (HEAD + "def config(): return Run(seeds=[5])", ["seeds", "tuple[int, ...]", "got [5]"]),
    ],
)
def test_a_wrong_file_is_told_in_one_line(file, refuse, text, words):
    Path(file).write_text(text)
    message = refuse(parse, file)
    assert all(word in message for word in [file, *words]), message


def test_a_file_that_is_read_again_is_run_again(file):
    parse(file)
    Path(file).write_text(CONFIG.replace("layer: int = 17", "layer: int = 18"))
    assert parse(file).editor.layer == 18


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--config", "--help"]),
        (["--config", "no/such.py:x"], ["no/such.py:x", "no such file 'no/such.py'"]),
        (["--config"], ["--config"]),
        (["--editor.lr=3"], ["--editor.lr=3", "--set editor.lr=3"]),
        (["--conf", "x.py"], ["--conf"]),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(refuse, argv, words):
    message = refuse(cli.parse, "edit", argv)
    assert all(word in message for word in words), message


def test_the_traceback_comes_back_on_demand(file, monkeypatch):
    monkeypatch.setenv("JAXEDIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no field 'layr'"):
        parse(file, "layr=1")


def test_help_lists_fields_with_types_and_current_values(file, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse("edit", ["--config", f"{file}:gpt-j-6b", "--set", "seeds=3", "--help"])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert re.search(r"editor\.layer +int +5\n", out)
    assert re.search(r"editor\.clamp +float \| None +4\.0\n", out)
    assert re.search(r"seeds +tuple\[int, \.\.\.\] +\(3,\)\n", out)
    assert "gpt2-xl, gpt-j-6b, ike" in out


def test_help_without_a_config_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse("edit", ["--help"])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "usage: python -m jaxedit.edit" in out
    assert "example: python -m jaxedit.edit --config" in out


def test_dry_run_prints_the_resolved_config_and_nothing_else(file, capsys, monkeypatch):
    monkeypatch.setattr(cli, "start_distributed", lambda: pytest.fail("joined the other hosts"))
    with pytest.raises(SystemExit) as stop:
        cli.parse("edit", ["--config", file, "--set", "mesh=2,4", "--dry-run", "--distributed"])
    assert not stop.value.code
    cfg = json.loads(capsys.readouterr().out)
    assert cfg["mesh"] == [2, 4]
    assert cfg["editor"] == {"layer": 17, "lr": 0.5, "clamp": 4.0, "norm": "l2"}


def test_dump_records_config_and_command(file, tmp_path, monkeypatch):
    argv = ["--config", file, "--set", "tag=two words"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "jaxedit.edit", *argv])
    path = settings.dump(cli.parse("edit", argv), tmp_path / "runs" / "one")
    assert path == tmp_path / "runs" / "one" / "config.json"
    written = json.loads(path.read_text())
    assert written["config"]["tag"] == "two words"
    assert written["config"]["seeds"] == [0]
    assert shlex.split(written["command"]) == ["python", "-m", "jaxedit.edit", *argv]


def test_dump_leaves_the_old_file_whole_when_writing_fails(file, tmp_path, monkeypatch):
    path = settings.dump(parse(file, "tag=old"), tmp_path / "run")
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            settings.dump(parse(file, "tag=new"), tmp_path / "run")
    assert json.loads(path.read_text())["config"]["tag"] == "old"
    settings.dump(parse(file, "tag=new"), tmp_path / "run")
    assert json.loads(path.read_text())["config"]["tag"] == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]


def test_dump_refuses_a_bucket(file):
    with pytest.raises(ValueError, match="gs://bucket/run"):
        settings.dump(parse(file), "gs://bucket/run")


@pytest.fixture
def verbs(monkeypatch):
    """A console script with one verb, whose module the test fills in."""
    module = types.ModuleType("jaxedit_some_verb")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "VERBS", {"inspect": ("jaxedit_some_verb:main", "look at a model")})
    monkeypatch.delenv("JAXEDIT_TRACEBACK", raising=False)
    return module


def test_the_console_script_calls_the_verb(verbs):
    seen = []
    verbs.main = seen.append
    assert cli.main(["inspect", "FOLDER", "--top", "3"]) == 0
    assert seen == [["FOLDER", "--top", "3"]]
    verbs.main = lambda argv: 3
    assert cli.main(["inspect"]) == 3


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_console_script_lists_its_verbs(verbs, capsys, argv):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "inspect" in out
    assert "look at a model" in out


def test_the_console_script_knows_its_version(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"jaxedit \d+\.\d+.*\n", capsys.readouterr().out)


def test_an_unknown_verb_gets_a_suggestion(verbs, refuse):
    assert "unknown verb 'inspct'; did you mean inspect?" in refuse(cli.main, ["inspct"])
    assert "inspect" in refuse(cli.main, ["xyzzy"])


def test_errors_of_a_verb_are_one_line(verbs, refuse, monkeypatch, tmp_path):
    def main(argv):
        raise ValueError("layer 99 is not\n  in 0..11")

    verbs.main = main
    assert "error: layer 99 is not in 0..11" in refuse(cli.main, ["inspect"])
    assert "error: layer 99 is not in 0..11" in refuse(cli.run, main, [])
    verbs.main = lambda argv: Path(argv[0]).read_text()
    missing = str(tmp_path / "nothing")
    assert missing in refuse(cli.main, ["inspect", missing])
    monkeypatch.setenv("JAXEDIT_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["inspect", missing])


def test_an_error_from_elsewhere_says_where_it_came_from(verbs, refuse):
    verbs.main = lambda argv: json.loads("{")
    message = refuse(cli.main, ["inspect"])
    assert "JSONDecodeError at decoder.py:" in message
    assert "JAXEDIT_TRACEBACK=1" in message


def test_a_mistake_in_the_program_keeps_its_traceback(verbs):
    def main(argv):
        raise KeyError("layer")

    verbs.main = main
    with pytest.raises(KeyError):
        cli.main(["inspect"])


def test_run_returns_the_exit_code():
    assert cli.run(lambda: None) == 0
    assert cli.run(lambda a, b: a + b, 1, 2) == 3


def test_two_processes_join(file):
    """The environment that launch/gke.yaml sets, on two processes of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "from jaxedit import cli; cli.parse('edit'); cli.start_distributed()\n"
        "import jax; from jax.experimental import multihost_utils\n"
        "import numpy as np; me = np.array(jax.process_index())\n"
        "print(jax.process_count(), multihost_utils.process_allgather(me).tolist())"
    )
    shared = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAXEDIT_DISTRIBUTED": "1",
        "JAXEDIT_COORDINATOR": f"127.0.0.1:{port}",
        "JAXEDIT_NUM_PROCESSES": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, "--config", file],
            env={**shared, "JAXEDIT_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert out.endswith("2 [0, 1]\n"), err


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "JAXEDIT_COORDINATOR=host:port"),
        ({"JAXEDIT_COORDINATOR": "localhost"}, "expected host:port"),
        ({"JAXEDIT_COORDINATOR": "localhost:1", "JAXEDIT_NUM_PROCESSES": "two"}, "expected int"),
        (
            {
                "JAXEDIT_COORDINATOR": "localhost:1",
                "JAXEDIT_NUM_PROCESSES": "2",
                "JAXEDIT_PROCESS_ID": "2",
            },
            "process_id < num_processes",
        ),
    ],
)
def test_a_run_that_cannot_start_says_what_to_set(monkeypatch, variables, words):
    import jax

    # This process has used its devices already, which jax would complain about first.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    # Nor may it find the cluster that the tests run on.
    monkeypatch.setattr("jax._src.clusters.ClusterEnv._cluster_types", [])
    for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAXEDIT_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(words)):
        cli.start_distributed()
    assert not jax.distributed.is_initialized()


def test_a_reader_that_has_enough_is_no_error():
    config = Path(__file__).parents[1] / "configs/knowedit.py"
    command = [sys.executable, "-m", "jaxedit.evaluate", "--config", config, "--help"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait() == 141


def test_the_package_is_the_console_script():
    run = subprocess.run(
        [sys.executable, "-m", "jaxedit", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("jaxedit ")
