"""What save writes, loaded by transformers: equal logits, in either dtype, in one file or many."""

import pytest

torch = pytest.importorskip("torch")

import families
import jax
import numpy as np
import reference
from transformers import AutoModelForCausalLM

from jaxedit import forward
from jaxedit.hf.load import load
from jaxedit.hf.save import save

pytestmark = pytest.mark.parity
TOKENS = np.random.RandomState(4).randint(3, 101, (2, 13)).astype(np.int32)
SAME = 1e-5  # torch beside torch: the weights are equal, the order of sums may differ
LOGITS = 5e-5  # torch beside ours


def torch_logits(model):
    reference.forget(model)
    with torch.no_grad():
        return model(torch.as_tensor(TOKENS)).logits.numpy()


def from_pretrained(folder, dtype=torch.float32):
    """transformers' model in `dtype`, which must find every tensor and need no other."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert {p.dtype for p in model.parameters()} == {dtype}
    return model.eval()


@pytest.mark.parametrize("variant", families.VARIANTS)
def test_saved_models_load_in_transformers(tmp_path, variant):
    original = reference.random_model(variant, seed=50 + families.VARIANTS.index(variant))
    original.save_pretrained(tmp_path / "torch")
    want = torch_logits(original)

    save(load(tmp_path / "torch"), tmp_path / "f32")
    saved = from_pretrained(tmp_path / "f32")
    np.testing.assert_allclose(torch_logits(saved), want, rtol=0, atol=SAME)
    assert saved.config.eos_token_id == original.config.eos_token_id

    half = load(tmp_path / "torch", dtype="bfloat16")
    save(half, tmp_path / "bf16")
    from_pretrained(tmp_path / "bf16", torch.bfloat16)
    # Its values in a float32 model: from_pretrained in bfloat16 would round Gemma's sqrt(D) as well
    saved = from_pretrained(tmp_path / "bf16")
    with torch.no_grad():
        for p in original.parameters():
            p.copy_(p.bfloat16().float())
    got, want = torch_logits(saved), torch_logits(original)
    np.testing.assert_allclose(got, want, rtol=0, atol=SAME)

    params = jax.tree.map(lambda x: x.astype("float32"), half.params)
    cfg = half.cfg.replace(dtype="float32")
    ours = families.jit(lambda params: forward(params, TOKENS, cfg).logits)(params)
    np.testing.assert_allclose(ours, got, rtol=0, atol=LOGITS)


@pytest.mark.parametrize(
    ("variant", "tied"),
    [("gpt2", False), ("neox", True), ("qwen2", True), ("olmo2", True)],
)
def test_the_head_may_be_tied_or_not(tmp_path, variant, tied):
    """The other way round than in the variant itself."""
    assert families.CONFIGS[variant][1].get("tie_word_embeddings", variant == "gpt2") != tied
    original = reference.random_model(variant, seed=90, tie_word_embeddings=tied)
    original.save_pretrained(tmp_path / "torch")
    params, cfg, _ = model = load(tmp_path / "torch")
    assert cfg.tied == tied
    assert ("head" in params) != tied
    ours = families.jit(lambda params: forward(params, TOKENS, cfg).logits)(params)
    np.testing.assert_allclose(ours, torch_logits(original), rtol=0, atol=LOGITS)
    save(model, tmp_path / "saved")
    saved = torch_logits(from_pretrained(tmp_path / "saved"))
    np.testing.assert_allclose(saved, torch_logits(original), rtol=0, atol=SAME)


@pytest.mark.parametrize("variant", ["gpt2", "phi3"])
def test_shards_load_in_transformers(tmp_path, variant):
    original = reference.random_model(variant, seed=91)
    original.save_pretrained(tmp_path / "torch")
    save(load(tmp_path / "torch"), tmp_path / "sharded", max_shard=30_000)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    saved = torch_logits(from_pretrained(tmp_path / "sharded"))
    np.testing.assert_allclose(saved, torch_logits(original), rtol=0, atol=SAME)


def test_shards_of_transformers_load_here(tmp_path):
    original = reference.random_model("llama", seed=92)
    original.save_pretrained(tmp_path / "torch", max_shard_size="30KB")
    assert len(list((tmp_path / "torch").glob("*.safetensors"))) > 2
    params, cfg, _ = load(tmp_path / "torch")
    ours = families.jit(lambda params: forward(params, TOKENS, cfg).logits)(params)
    np.testing.assert_allclose(ours, torch_logits(original), rtol=0, atol=LOGITS)
