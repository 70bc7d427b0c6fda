"""The commands as their user sees them: `jaxedit info`, `jaxedit generate`, `python -m jaxedit.hf`.

What they print and where it goes; the numbers are those of the library and of the devices.
"""

import json
import math
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

import jaxedit
from jaxedit import LowRank, Model, Write, cli, console
from jaxedit.edit.record import origin
from jaxedit.hf.__main__ import main as hf
from jaxedit.models.cache import init_cache
from jaxedit.models.shapes import SHAPES
from jaxedit.progress import Meter
from jaxedit.tensorfile import Tensor

PROMPTS = ["the capital of France", "Rome is in"]
STEPS = 6


def word_tokenizer(size):
    words = ["<unk>", "<s>", "the", "capital", "of", "France", "is", "Paris", "Rome", "in"]
    words += [f"w{i}" for i in range(len(words), size)]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def write_model(folder, shape, seed=0):
    cfg = SHAPES[shape]
    leaves, tree = jax.tree.flatten(jaxedit.init(jax.random.key(seed), cfg))
    noise = np.random.RandomState(seed)  # so that what is generated is not one word over and over
    leaves = [x + jnp.asarray(0.3 * noise.randn(*x.shape), x.dtype) for x in leaves]
    jaxedit.save(Model(tree.unflatten(leaves), cfg, word_tokenizer(cfg.vocab)), folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    shapes = {"tiny-llama": ("tiny-llama", 0), "tiny-gpt2": ("tiny-gpt2", 0)}
    shapes["other"] = ("tiny-llama", 1)  # the same architecture with other weights
    return {name: write_model(root / name, *what) for name, what in shapes.items()}


@pytest.fixture(scope="module")
def folder(folders):
    return folders["tiny-llama"]


@pytest.fixture(scope="module")
def model(folder):
    return jaxedit.load(folder)


@pytest.fixture
def out(capfd):
    """Calls a command and returns what it wrote to stdout; nothing may go to stderr."""

    def call(*argv):
        capfd.readouterr()
        assert cli.main([str(a) for a in argv]) == 0
        stdout, stderr = capfd.readouterr()
        assert stderr == ""
        return stdout

    return call


@pytest.fixture
def refuse(capfd, monkeypatch):
    """Calls a command that must end with exit code 2, and returns its one line."""
    monkeypatch.delenv("JAXEDIT_TRACEBACK", raising=False)

    def call(function, *argv):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            function([str(a) for a in argv])
        assert stop.value.code == 2
        stdout, stderr = capfd.readouterr()
        assert stdout == ""
        assert stderr.startswith("jaxedit: error: ")
        assert stderr.count("\n") == 1
        return stderr

    return call


# --- jaxedit info ---


def test_info_prints_an_aligned_table(folder, out):
    on_disk = os.path.getsize(f"{folder}/model.safetensors")
    table = out("info", folder, "--fsdp", 8, "--tensor", 2, "--dtype", "bfloat16", "--batch", 16)
    assert table == (
        "family      llama\n"
        "parameters  37,152\n"
        "layers      4\n"
        "embed       32\n"
        "heads       4 query, 2 key-value, of 8\n"
        "mlp         48 silu, gated\n"
        "vocab       96\n"
        "positions   64\n"
        f"on disk     {on_disk / 1000:.0f} kB in float32\n"
        "mesh        data=1 fsdp=8 tensor=2, 16 devices\n"
        # matrices in 16 parts, the key-value heads and the vocabulary too; norms whole
        "weights     5.18 kB per device in bfloat16\n"
        # 2 x 4 layers x 2 rows x 64 x 1 head x 8, two bytes each
        "cache       16.4 kB per device in bfloat16, for 16 rows of 64 tokens\n"
    )


def test_info_speaks_of_one_device_and_one_row(folders, out):
    lines = out("info", folders["tiny-gpt2"], "--length", 32).splitlines()
    assert lines[0].split(maxsplit=1) == ["family", "gpt2, tied head"]
    assert lines[-3].endswith("data=1 fsdp=1 tensor=1, 1 device")
    assert lines[-1].endswith("32.8 kB per device in float32, for 1 row of 32 tokens")


def test_info_says_which_axis_divides_nothing(folder, out):
    mesh = out("info", folder, "--fsdp", 5, "--tensor", 2).splitlines()[-3]
    assert mesh.endswith("10 devices; fsdp=5 divides no weight")
    assert json.loads(out("info", folder, "--json", "--fsdp", 5))["idle"] == ["fsdp"]
    assert "divides no" not in out("info", folder, "--data", 3, "--fsdp", 2)


def test_info_for_programs(folder, model, out):
    facts = json.loads(out("info", folder, "--json", "--batch", 4, "--length", 10, "--fsdp", 2))
    leaves = jax.tree.leaves(model.params)
    assert jaxedit.ModelConfig.from_dict(facts["model"]) == model.cfg
    assert facts["parameters"] == sum(x.size for x in leaves)
    assert facts["stored"] == "float32"
    assert facts["disk_bytes"] == os.path.getsize(f"{folder}/model.safetensors")
    assert facts["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    assert facts["cache"] == {
        "dtype": "float32",
        "batch": 4,
        "length": 10,
        "bytes": 4 * 2 * model.cfg.layers * (4 // 2) * 10 * 2 * 8,
    }


def test_info_reads_no_weights_and_looks_at_no_device(folder, out, monkeypatch):
    def never(*_, **__):
        raise AssertionError("info needs neither")

    monkeypatch.setattr(Tensor, "read", never)
    monkeypatch.setattr(jax, "devices", never)
    assert "64 devices" in out("info", folder, "--data", 2, "--fsdp", 8, "--tensor", 4)


@pytest.mark.parametrize(
    ("name", "dtype", "sizes"),
    [
        ("tiny-llama", None, (1, 1, 1)),
        ("tiny-llama", None, (8, 1, 1)),
        ("tiny-llama", None, (2, 2, 2)),
        ("tiny-llama", "bfloat16", (1, 2, 4)),  # two key-value heads are not cut into four
        ("tiny-gpt2", None, (1, 8, 1)),
        ("tiny-gpt2", "bfloat16", (1, 4, 2)),
        ("tiny-gpt2", None, (1, 1, 8)),  # nor four into eight, nor 101 words into anything
    ],
)
def test_a_device_holds_what_info_says(folders, out, name, dtype, sizes):
    data, fsdp, tensor = sizes
    flags = ["--data", data, "--fsdp", fsdp, "--tensor", tensor]
    flags += ["--dtype", dtype] if dtype else []
    facts = json.loads(out("info", folders[name], "--json", "--batch", 8, "--length", 32, *flags))
    mesh = jaxedit.make_mesh(data, fsdp, tensor)
    model = jaxedit.load(folders[name], mesh if mesh.size > 1 else None, dtype)
    cache = jaxedit.forward(
        model.params,
        jnp.ones((8, 4), jnp.int32),
        model.cfg,
        cache=init_cache(model.cfg, 8, 32),
    ).cache

    def held(tree):
        """Bytes on every device of the mesh."""
        shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
        devices = jax.devices()[: math.prod(sizes)]
        return [sum(s.data.nbytes for s in shards if s.device == d) for d in devices]

    assert held(model.params) == [facts["weights"]["bytes"]] * math.prod(sizes)
    assert held((cache.k, cache.v)) == [facts["cache"]["bytes"]] * math.prod(sizes)
    assert cache.k.dtype.name == facts["cache"]["dtype"]


def test_info_of_what_is_no_model(folder, tmp_path, refuse):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert "'mamba' is not supported" in refuse(cli.main, "info", tmp_path)
    assert "no such folder" in refuse(cli.main, "info", tmp_path / "none")
    assert "required: model" in refuse(cli.main, "info")
    for flag, value in (("--fsdp", -1), ("--length", 0), ("--batch", 0)):
        line = refuse(cli.main, "info", folder, flag, value)
        assert f"{flag} {value}: info asks for a number, at least 1" in line


# --- jaxedit generate ---


def ask(*more):
    flags = [flag for prompt in PROMPTS for flag in ("--prompt", prompt)]
    return ["generate", *flags, "--max-new-tokens", STEPS, *more]


def test_generate_prints_prompts_with_their_continuations(folder, model, out):
    texts = jaxedit.generate(model, PROMPTS, max_new_tokens=STEPS)
    assert len({*texts, ""}) == 3  # two continuations that differ
    printed = out(*ask("--model", folder))
    assert printed == "".join(f"{p}{t}\n" for p, t in zip(PROMPTS, texts, strict=True))
    assert out(*ask("--model", folder, "--fsdp", 4, "--tensor", 2)) == printed


def test_generate_for_programs(folder, model, out, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{PROMPTS[1]}\n\nquatre-vingt-dix œufs\n")
    flags = ["--model", folder, "--json", "--prompt", PROMPTS[0], "--file", file]
    lines = out("generate", *flags, "--max-new-tokens", STEPS).splitlines()
    prompts = [*PROMPTS, "quatre-vingt-dix œufs"]
    texts = jaxedit.generate(model, prompts, max_new_tokens=STEPS)
    want = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    assert [json.loads(line) for line in lines] == want
    assert "œufs" in lines[2]


def test_generate_passes_its_settings_on(folder, model, out):
    def same(flags, **settings):
        lines = out(*ask("--model", folder, "--json", *flags)).splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        assert texts == jaxedit.generate(model, PROMPTS, max_new_tokens=STEPS, **settings)
        return texts

    greedy = same([])
    third = same(["--temperature", 1.5, "--seed", 3], temperature=1.5, seed=3)
    fourth = same(["--temperature", 1.5, "--seed", 4], temperature=1.5, seed=4)
    assert greedy != third != fourth
    assert same(["--temperature", 1, "--top-k", 1], temperature=1.0, top_k=1) == greedy
    assert same(["--temperature", 1, "--top-p", 1e-6], temperature=1.0, top_p=1e-6) == greedy
    word = greedy[0].split()[2]
    short = same(["--stop", word], stop=[word])
    assert len(short[0].split()) == 2


def test_generate_in_another_precision(folder, out):
    low = jaxedit.load(folder, dtype="bfloat16")
    flags = ["--model", folder, "--dtype", "bfloat16", "--temperature", 2, "--seed", 1]
    texts = jaxedit.generate(low, PROMPTS, max_new_tokens=STEPS, temperature=2.0, seed=1)
    assert out(*ask(*flags)) == "".join(f"{p}{t}\n" for p, t in zip(PROMPTS, texts, strict=True))


def test_generate_sets_its_text_apart_on_a_terminal(folder, out, monkeypatch):
    plain = out(*ask("--model", folder))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bold = out(*ask("--model", folder))
    for prompt, line in zip(PROMPTS, bold.splitlines(), strict=True):
        assert line.startswith(f"{prompt}\033[1m")
        assert line.endswith("\033[0m")
    assert bold.replace("\033[1m", "").replace("\033[0m", "") == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert out(*ask("--model", folder)) == plain


@pytest.fixture
def edit(model, tmp_path):
    """A delta and a write, as a file."""
    noise = np.random.RandomState(5)
    draw = lambda *shape: jnp.asarray(noise.randn(*shape), jnp.float32)
    edit = jaxedit.Edit(
        writes={"mlp_out": Write(jnp.ones((1, 1, 1), bool), draw(1, 1, 1, 32), jnp.array([2]))},
        deltas={"mlp/down": LowRank(draw(1, 48, 2), draw(1, 2, 32), jnp.array([1]))},
        provenance=origin(model, method="test"),
    )
    edit.save(tmp_path / "edit.safetensors")
    return edit, str(tmp_path / "edit.safetensors")


def test_generate_applies_an_edit(folder, model, edit, out):
    edit, file = edit
    edited = lambda **changes: jaxedit.generate(model, PROMPTS, max_new_tokens=STEPS, **changes)
    texts = edited(writes=edit.writes, deltas=edit.deltas)
    assert texts not in (edited(), edited(writes=edit.writes), edited(deltas=edit.deltas))
    printed = out(*ask("--model", folder, "--edit", file))
    assert printed == "".join(f"{p}{t}\n" for p, t in zip(PROMPTS, texts, strict=True))


def test_generate_refuses_an_edit_of_another_model(folders, edit, refuse, out):
    edit, file = edit
    line = refuse(cli.main, *ask("--model", folders["other"], "--edit", file))
    assert "the edit was made on a llama with checksum" in line
    other = jaxedit.load(folders["other"])
    texts = jaxedit.generate(
        other, PROMPTS, max_new_tokens=STEPS, writes=edit.writes, deltas=edit.deltas
    )
    printed = out(*ask("--model", folders["other"], "--edit", file, "--force"))
    assert printed == "".join(f"{p}{t}\n" for p, t in zip(PROMPTS, texts, strict=True))
    # force does not make it fit another architecture
    line = refuse(cli.main, *ask("--model", folders["tiny-gpt2"], "--edit", file, "--force"))
    assert "mlp/down" in line


def test_generate_says_what_is_wrong_before_it_reads_the_model(
    folder, tmp_path, refuse, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(Tensor, "read", never)
    some = ["--prompt", "Rome"]
    asked = ["generate", "--model", folder]
    assert "no prompt: give --prompt TEXT or --file FILE" in refuse(cli.main, *asked)
    line = refuse(cli.main, *asked, "--file", tmp_path / "none.txt")
    assert f"--file {tmp_path / 'none.txt'}: no such file" in line
    line = refuse(cli.main, *asked, *some, "--edit", tmp_path / "none.safetensors")
    assert f"--edit {tmp_path / 'none.safetensors'}: no such file" in line
    line = refuse(cli.main, *asked, *some, "--edit", f"{folder}/model.safetensors")
    assert "not an edit" in line
    assert "no such folder" in refuse(cli.main, "generate", "--model", "./none", *some)
    assert "needs 9 devices, there are 8" in refuse(cli.main, *asked, *some, "--fsdp", "9")


def test_generate_does_not_drop_the_prefix_of_an_edit(folder, tmp_path, refuse):
    jaxedit.Edit(prefix=(3, 4)).save(tmp_path / "demos.safetensors")
    line = refuse(cli.main, *ask("--model", folder, "--edit", tmp_path / "demos.safetensors"))
    assert "prefix tokens, which generate cannot apply" in line


# --- python -m jaxedit.hf ---


@pytest.mark.parametrize("flags", [(), ("--fsdp", "4", "--tensor", "2")])
def test_import_info_export_and_back(folder, out, capfd, tmp_path, flags):
    checkpoint, back = tmp_path / "checkpoint", tmp_path / "back"
    hf(["import", folder, str(checkpoint), *flags])
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    read, wrote = stderr.splitlines()
    assert read.endswith(f" s  read {folder}: llama, 37,152 parameters")
    assert wrote.endswith(f" s  wrote {checkpoint}, a checkpoint")

    facts, same = (json.loads(out("info", name, "--json")) for name in (folder, checkpoint))
    used = sum(f.stat().st_size for f in checkpoint.rglob("*") if f.is_file())
    assert same == facts | {"disk_bytes": used}
    assert out(*ask("--model", checkpoint)) == out(*ask("--model", folder))

    hf(["export", str(checkpoint), str(back), *flags])
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert stderr.splitlines()[-1].endswith(f" s  wrote {back}, a Hugging Face folder")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        with open(f"{folder}/{name}", "rb") as file:
            assert (back / name).read_bytes() == file.read(), name
    assert jaxedit.load(back).tokenizer("Rome is Paris")["input_ids"] == [8, 6, 7]


def test_an_existing_target_stays_and_is_refused_before_reading(
    folder, tmp_path, refuse, monkeypatch
):
    target = tmp_path / "there"
    target.mkdir()
    (target / "work.txt").write_text("mine")
    monkeypatch.setattr(Tensor, "read", lambda *_: pytest.fail("the weights were read"))
    for direction in ("import", "export"):
        line = refuse(lambda argv: cli.run(hf, argv), direction, folder, target)
        assert line == f"jaxedit: error: {target} exists; choose another name\n"
    assert [(f.name, f.read_text()) for f in target.iterdir()] == [("work.txt", "mine")]


def test_what_hf_cannot_do(folder, tmp_path, refuse):
    run, target = lambda argv: cli.run(hf, argv), tmp_path / "new"
    assert "no such folder" in refuse(run, "import", tmp_path / "none", target)
    assert "needs 9 devices, there are 8" in refuse(run, "import", folder, target, "--fsdp", "9")
    assert "invalid choice: 'exprot'" in refuse(run, "exprot", folder, target)
    assert "required: target" in refuse(run, "export", folder)
    assert not target.exists()


# transformers without PyTorch, as `make test` installs it, tells of it when it is imported
WITHOUT_TORCH = """
import importlib.util as u, json, sys
find = u.find_spec
u.find_spec = lambda name, *a: None if name.split(".")[0] == "torch" else find(name, *a)
from jaxedit import cli
for argv in json.loads(sys.argv[1]):
    if argv[0] == "hf":
        from jaxedit.hf.__main__ import main
        assert cli.run(main, argv[1:]) == 0
    else:
        assert cli.main(argv) == 0
"""


def test_nothing_but_the_result_goes_to_stdout(folder, tmp_path):
    """In a process of its own: what libraries say when they are imported or start their threads."""
    checkpoint = str(tmp_path / "checkpoint")
    commands = [
        ["info", folder, "--json"],
        ["hf", "import", folder, checkpoint],
        ["generate", "--model", checkpoint, "--prompt", PROMPTS[0], "--json"],
    ]
    # not what importing jaxedit.console here has set
    env = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts, end = json.JSONDecoder().raw_decode(done.stdout)
    assert facts["parameters"] == 37152
    answer = json.loads(done.stdout[end:])
    assert answer["prompt"] == PROMPTS[0]
    assert answer["text"]
    read, wrote = done.stderr.splitlines()
    assert read.endswith(f" read {folder}: llama, 37,152 parameters")
    assert wrote.endswith(f" wrote {checkpoint}, a checkpoint")


def test_progress_goes_to_stderr(folder, capfd, monkeypatch):
    """As for a model that takes long: the lines do not mix with the result."""
    argv = [str(a) for a in ask("--model", folder)]
    assert cli.main(argv) == 0
    want = capfd.readouterr().out
    monkeypatch.setattr(console, "Meter", partial(Meter, every=0))
    assert cli.main(argv) == 0
    stdout, stderr = capfd.readouterr()
    assert stdout == want
    assert "reading: 100%  37,152 of 37,152 weights, in 0:0" in stderr


def test_data_says_what_is_in_a_file_and_what_was_left_out(tmp_path, capsys):
    good = {"case_id": 1, "prompt": "Alba is in", "subject": "Alba", "target_new": "Rome",
            "ground_truth": "Turin", "rephrase_prompt": "Alba lies in",
            "locality_prompt": "Bra is in", "locality_ground_truth": "Turin"}  # fmt: skip
    bad = good | {"subject": "Asti"}
    (tmp_path / "counterfact-train.json").write_text(json.dumps([good, bad]))
    assert cli.main(["data", "counterfact", str(tmp_path / "counterfact-train.json")]) == 0
    out = capsys.readouterr().out
    assert '"subject": "Alba"' in out
    assert "1 read; left out: 1 rows" in out
    assert "'Asti' does not occur in the prompt 'Alba is in'" in out
