"""From a config to a certificate and back, on text of a few letters."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit import settings
from jaxedit.bounds import baselines, certificate, fit, risk, sweep
from jaxedit.bounds.certificate import BoundConfig, RoundConfig, run
from jaxedit.bounds.claims import ClaimConfig
from jaxedit.bounds.code import Decoder, get_counts, get_symbols
from jaxedit.bounds.family import Choices, FamilyConfig, decode, encode, family
from jaxedit.bounds.risk import ReadConfig
from jaxedit.bounds.sample import SampleConfig, load
from jaxedit.bounds.subspace import SubspaceConfig
from jaxedit.bounds.verify import verify
from jaxedit.console import bound
from jaxedit.data.documents import Source
from jaxedit.models.shapes import SHAPES
from jaxedit.report import bounds
from jaxedit.train.optimizer import OptimizerConfig

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = SHAPES["tiny-gpt2"].replace(vocab=257, layers=1)
OPTIMIZER = OptimizerConfig(lr=5e-2, warmup=5, weight_decay=0.0)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Passages that a program learns quickly: words of a small language."""
    folder = tmp_path_factory.mktemp("bounds")
    random = np.random.RandomState(0)
    words = ["abba ", "baab ", "abab "]
    lines = ["".join(words[i] for i in random.randint(0, 3, 4)) for _ in range(3000)]
    (folder / "text.txt").write_text("\n".join(lines))
    sample = SampleConfig(
        Source((str(folder / "text.txt"),), document="line"), draws=20_000, cache=str(folder)
    )
    return folder, BoundConfig(
        sample,
        FamilyConfig(MODEL, subspace=SubspaceConfig(dim=100)),
        fit.FitConfig(steps=60, batch=16, length=20, optimizer=OPTIMIZER, save_every=50),
        RoundConfig(levels=5, train=fit.FitConfig(
            steps=20, batch=16, length=20, optimizer=dataclasses.replace(OPTIMIZER, lr=5e-3))),
        Choices(dims=(50, 100), levels=(3, 5)),
        ClaimConfig(evaluated=1500, fresh=2000, topk=(1,), read=ReadConfig(window=20, stride=20)),
        str(folder / "run"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(setting):
    return run(setting[1])


def test_the_certified_model_is_a_model(setting, made, tmp_path, capsys):
    """Written as a Hugging Face folder, it loses on the sample what the certificate says. Its head
    was changed alone, so the one that it shared with the embeddings is now its own.
    """
    cfg = setting[1]
    assert bound(["export", cfg.workdir, "--out", str(tmp_path / "model")]) == 0
    loaded = jaxedit.load(tmp_path / "model", dtype="float32")
    assert MODEL.tied
    assert not loaded.cfg.tied
    sample = load(cfg.sample, loaded.tokenizer)
    some = sample.subsample(cfg.claim.evaluated, cfg.claim.seed)
    found = risk.read(loaded.params, None, loaded.cfg, sample, some, cfg.claim.read)
    bits = made["claims"]["bits"]
    shown = risk.losses(found, bits["alpha"], sample.vocab).mean()
    assert shown == pytest.approx(bits["risk"], abs=1e-4)
    with pytest.raises(ValueError, match="export writes a model to --out FOLDER"):
        bound(["export", cfg.workdir])
    with pytest.raises(ValueError, match="the others have no --out"):
        bound(["show", cfg.workdir, "--out", "x"])


def test_the_certificate_holds_and_says_something(setting, made):
    bits, top = made["claims"]["bits"], made["claims"]["top1"]
    assert bits["fresh"] < bits["bound"] < bits["vacuous"]
    assert top["fresh"] < top["bound"] < 1
    assert bits["bound"] < made["baselines"]["uniform"]["bits"]["bound"]
    assert abs(bits["fresh"] - bits["risk"]) < 0.1
    assert made["theorems"]["betting"]["bits"] < made["theorems"]["hoeffding"]["bits"]
    assert made["bytes"] == (setting[0] / "run/hypothesis.bin").stat().st_size
    order = [made["baselines"][name]["bits"]["risk"] for name in ("uniform", "unigram", "bigram")]
    assert order == sorted(order, reverse=True)


def test_a_certificate_in_words(made):
    told = bounds.words(made)
    assert made["sha256"]["hypothesis"] in told
    assert "one of 1 compared" in told
    bits, kept = made["claims"]["bits"], made["sample_bits"]
    assert kept["model"] == pytest.approx(kept["tokens"] * bits["risk"])
    assert kept["with_file"] - kept["model"] == pytest.approx(8 * made["bytes"])
    assert "*" not in told.splitlines()[5]
    bits = bits | {"bound": bits["vacuous"]}
    told = bounds.words(made | {"claims": made["claims"] | {"bits": bits}})
    assert f"{bits['vacuous']:.3f}*" in told
    drawn = bounds.fronts({f"rank {r}: {d}": made for r in (1, 4) for d in (10, 20)})
    assert "rank 1" in drawn
    assert "rank 4" in drawn


def test_verify_states_it_again_from_the_bytes(setting, made, monkeypatch):
    monkeypatch.setattr(certificate, "trained", lambda *_: pytest.fail("nothing is trained"))
    again, different = verify(setting[0] / "run")
    assert different == []
    assert again["claims"] == made["claims"]


def test_a_change_of_bytes_data_or_claims_is_found(setting, made, tmp_path, capsys):
    folder = setting[0] / "run"
    put = lambda name, data: (tmp_path / name).write_bytes(data)
    data, text = (folder / "hypothesis.bin").read_bytes(), (folder / "certificate.json").read_text()
    put("certificate.json", text.encode())
    put("hypothesis.bin", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="the hypothesis is another"):
        verify(tmp_path)
    put("hypothesis.bin", data)
    for change, told in (
        (lambda c: c["claims"]["bits"].update(bound=float("nan")), "claims.bits.bound"),
        (lambda c: c["claims"].pop("bits"), "claims.bits"),
        (lambda c: c["claims"].update(top99=c["claims"]["top1"]), "claims.top99"),
        (lambda c: c["claims"]["bits"].update(alphas=[]), "claims.bits.alphas"),
        (lambda c: c["baselines"].clear(), "baselines.uniform"),
        (lambda c: c["sha256"].pop("weights"), "sha256.weights"),
        (lambda c: c.pop("candidates"), "candidates"),
    ):
        change(wrong := json.loads(text))
        put("certificate.json", json.dumps(wrong).encode())
        assert told in {d.what for d in verify(tmp_path)[1]}
    for change, message in (
        (lambda c: c["sha256"].pop("hypothesis"), "the hypothesis is another"),
        (lambda c: c.update(sha256="x"), "damaged: sha256 missing"),
        (lambda c: c.pop("m"), "damaged: m missing"),
        (lambda c: c.update(format=1), "has format 1, this version states format 2"),
    ):
        change(wrong := json.loads(text))
        put("certificate.json", json.dumps(wrong).encode())
        with pytest.raises(ValueError, match=message):
            verify(tmp_path)
    better = json.loads(text)
    better["claims"]["bits"]["bound"] -= 0.001
    put("certificate.json", json.dumps(better).encode())
    assert bound(["verify", str(tmp_path)]) == 1
    assert "claims.bits.bound: the certificate says" in capsys.readouterr().err
    better["config"]["sample"]["seed"] = 1
    put("certificate.json", json.dumps(better).encode())
    with pytest.raises(ValueError, match="the sample is another"):
        verify(tmp_path)
    (tmp_path / "hypothesis.bin").unlink()
    with pytest.raises(ValueError, match="the bytes that the certificate speaks about"):
        verify(tmp_path)
    put("certificate.json", b"{}")
    with pytest.raises(ValueError, match="is no certificate"):
        verify(tmp_path)


def test_training_is_not_repeated_and_is_the_same(setting, made, tmp_path):
    cfg = dataclasses.replace(setting[1], workdir=str(tmp_path))
    again = run(cfg)
    assert again["sha256"] == made["sha256"]
    marks = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/w.safetensors")}
    assert len(marks) == 2
    assert run(cfg)["claims"] == made["claims"]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/w.safetensors")} == marks


def test_a_pilot_chooses_alpha_for_less(setting, made, tmp_path):
    claim = dataclasses.replace(setting[1].claim, pilot=500)
    shutil.copytree(setting[0] / "run", tmp_path, dirs_exist_ok=True)  # it is trained already
    found = run(dataclasses.replace(setting[1], claim=claim, workdir=str(tmp_path)))
    bits, before = found["claims"]["bits"], made["claims"]["bits"]
    assert bits["alpha"] == before["alpha"]
    assert bits["bound"] < before["bound"]
    same = {one["alpha"]: one["bound"] for one in bits["alphas"]}
    assert same[bits["alpha"]] == before["bound"]  # all of them together cost what they did
    # an alpha that the pilot does not choose is paid for as if it did: refused
    cfg, data = setting[1], (tmp_path / "hypothesis.bin").read_bytes()
    one = decode(data, cfg.family, cfg.choices, 100, 5)
    other = encode(one._replace(alpha=0.25), cfg.family, cfg.choices, 5)
    (tmp_path / "hypothesis.bin").write_bytes(other)
    found["sha256"]["hypothesis"] = hashlib.sha256(other).hexdigest()
    (tmp_path / "certificate.json").write_text(settings.to_json(found))
    with pytest.raises(ValueError, match=r"the file says alpha = 0\.25, the pilot chooses"):
        verify(tmp_path)


def test_parts_of_a_batch_are_the_batch(setting):
    _, cfg = setting
    found = family(cfg.family)
    text = load(cfg.sample, found.base.tokenizer)
    after = []
    for parts in (1, 4):
        task = fit.task(found, text, dataclasses.replace(cfg.fit, accumulate=parts))
        state = task.init()
        for step in range(3):
            state, _ = task.update(state, task.batch(step))
        after.append(np.asarray(state["trained"]["w"]))
    np.testing.assert_allclose(*after, atol=2e-4)
    assert np.abs(after[0]).max() > 0.05


def test_rounded_training_moves_numbers_and_levels(setting):
    _, cfg = setting
    found = family(cfg.family)
    text = load(cfg.sample, found.base.tokenizer)
    start = {"w": np.random.RandomState(0).standard_normal(100), "levels": np.array([-1.0, 0, 1])}
    task = fit.task(found, text, cfg.fit, start)
    state, _ = task.update(task.init(), task.batch(0))
    w, levels = (np.asarray(state["trained"][k]) for k in ("w", "levels"))
    assert (w != np.float32(start["w"])).all()
    assert (levels != start["levels"]).all()
    moved = np.asarray(fit.rounded(state["trained"]))
    assert len(np.unique(moved)) == 3
    assert (moved.astype(np.float16).astype(np.float32) == moved).all()


def test_what_cannot_be_claimed_is_refused(setting):
    _, cfg = setting
    more = dataclasses.replace(cfg.claim, evaluated=30_000)
    with pytest.raises(ValueError, match="evaluated=30000 documents of 20000"):
        run(dataclasses.replace(cfg, claim=more))
    with pytest.raises(ValueError, match="delta=0"):
        dataclasses.replace(cfg.claim, delta=0)
    for change, message in (
        ({"topk": (1, 300)}, "topk=300: there are 257 tokens"),
        (
            {"read": ReadConfig(window=4096, stride=4096)},
            r"read\.window=4096: the model has positions",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(dataclasses.replace(cfg, claim=dataclasses.replace(cfg.claim, **change)))
    for change, message in (
        ({"candidates": 0}, "candidates=0: from 1 on"),
        ({"pilot": -1}, "pilot=-1: a number of documents"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(cfg.claim, **change)
    few = dataclasses.replace(cfg.choices, dims=(50,))
    with pytest.raises(ValueError, match=r"subspace\.dim=100 is not declared"):
        run(dataclasses.replace(cfg, choices=few))


def test_a_table_is_what_its_bytes_say(setting):
    _, cfg = setting
    text = load(cfg.sample, family(cfg.family).base.tokenizer)
    counted = baselines.counts(text)
    assert counted.sum() == sum(text.length(d) for d in text.documents_m.tolist())
    steps = baselines.halves(counted.sum(0))
    from jaxedit.bounds.code import Encoder

    out = Encoder()
    baselines.put(out, steps)
    data = out.finish()
    _, single, _ = baselines.tables(counted)
    assert single.bits == 8 * len(data)
    file = Decoder(data)
    kept = np.flatnonzero([file.get(2) for _ in range(2 * baselines.LEVELS)])
    counts = get_counts(file, text.vocab, len(kept))
    np.testing.assert_array_equal(kept[get_symbols(file, counts)], steps)
    np.testing.assert_allclose(np.exp(single.logp).sum(), 1)
    share = counted.sum(0) / counted.sum()
    likely = share > 1e-3
    ratio = np.log2(np.exp(single.logp[0][likely]) / share[likely])
    assert np.abs(ratio).max() < 0.3  # halves of a bit


def test_a_sweep_compares_and_keeps_what_it_has(setting, tmp_path):
    _, cfg = setting
    short = ("fit.steps=20", "round.train=none")
    many = sweep.SweepConfig(
        cfg, (("50", ("family.subspace.dim=50", *short)), ("100", short)), "numbers", str(tmp_path)
    )
    made = sweep.run(many, lambda *_: lambda *_: None)
    assert [made[k]["numbers"] for k in ("50", "100")] == [50, 100]
    assert made["50"]["config"]["claim"]["candidates"] == 2
    files = [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("*/certificate.json"))]
    sweep.run(many, lambda *_: lambda *_: None)
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("*/certificate.json"))] == files
    wrong = dataclasses.replace(many, variants=(("a", ("fit.stepz=1",)),))
    with pytest.raises(ValueError, match=r"no field .fit\.stepz"):
        sweep.run(wrong, lambda *_: lambda *_: None)
    large = dataclasses.replace(
        many, variants=(("b", short), ("c", ("family.subspace.dim=100000000",)))
    )
    with pytest.raises(ValueError, match="a subspace of 100000000 dimensions: from 1 to"):
        sweep.run(large, lambda *_: lambda *_: None)
    assert not (tmp_path / "b").exists()  # nothing was run before that


@pytest.mark.parametrize("preset", ["modes", "sizes", "dims", "fronts", "shuffled"])
def test_every_model_of_a_published_sweep_can_be_made(preset):
    published, _ = settings.load(f"{CONFIGS}/sublora.py:{preset}")
    for one in sweep.configs(published).values():
        found = family(one.family)
        assert sum(part.d for part in found.space.parts) > 0


def test_weights_at_zero_do_not_learn_from_nothing(setting):
    """w = 0 is the base: what training starts from."""
    found = family(setting[1].family)
    _, deltas = found.at(jnp.zeros(100))
    assert all(not d.dense().any() for d in deltas.values())
