"""Architectures by name: published ones to benchmark and train, and two tiny ones for tests and
demos.
"""

from jaxedit.models.config import ModelConfig, Rope

GPT2 = ModelConfig(
    family="gpt2",
    layers=12,
    embed=768,
    heads=12,
    kv_heads=12,
    head_dim=64,
    mlp=3072,
    vocab=50257,
    max_len=1024,
    norm="layer",
    act="gelu_tanh",
    gated=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied=True,
    learned_pos=True,
    bos_id=50256,
    eos_ids=(50256,),
)
GPTJ = GPT2.replace(
    family="gptj",
    layers=28,
    embed=4096,
    heads=16,
    kv_heads=16,
    head_dim=256,
    mlp=16384,
    vocab=50400,
    max_len=2048,
    qkv_bias=False,
    out_bias=False,
    head_bias=True,
    parallel=True,
    shared_norm=True,
    tied=False,
    learned_pos=False,
    rotary_dim=64,
    rope_interleaved=True,
)
LLAMA2 = ModelConfig(
    family="llama",
    layers=32,
    embed=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    mlp=11008,
    vocab=32000,
    max_len=4096,
    rotary_dim=128,
    bos_id=1,
    eos_ids=(2,),
)
LLAMA3_ROPE = Rope(500000.0, "llama3", factor=8.0, original_len=8192)

SHAPES: dict[str, ModelConfig] = {
    "gpt2-small": GPT2,
    "gpt2-xl": GPT2.replace(layers=48, embed=1600, heads=25, kv_heads=25, mlp=6400),
    "gpt-j-6b": GPTJ,
    "llama-2-7b": LLAMA2,
    "llama-3.1-8b": LLAMA2.replace(
        kv_heads=8,
        mlp=14336,
        vocab=128256,
        max_len=131072,
        ropes=(LLAMA3_ROPE,),
        bos_id=128000,
        eos_ids=(128001,),
    ),
    "llama-160m": LLAMA2.replace(
        layers=12,
        embed=768,
        heads=12,
        kv_heads=12,
        head_dim=64,
        mlp=3072,
        vocab=32000,
        max_len=2048,
        rotary_dim=64,
    ),
    # two families that differ in everything: norms, positions, gates, biases, tying, grouped heads
    "tiny-gpt2": GPT2.replace(
        layers=4, embed=32, heads=4, kv_heads=4, head_dim=8, mlp=64, vocab=101, max_len=64
    ).replace(bos_id=1, eos_ids=()),
    "tiny-llama": LLAMA2.replace(
        layers=4, embed=32, heads=4, kv_heads=2, head_dim=8, rotary_dim=8, mlp=48, vocab=96
    ).replace(max_len=64, bos_id=1, eos_ids=()),
}
