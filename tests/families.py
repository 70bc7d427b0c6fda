"""The tiny models of the tests: one config per architecture and option, frozen weights.

A weight depends on its name alone, so a model of the tests is a config, a list of names and shapes
and this file; nothing random is stored.
"""

import json
import shutil
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxedit.tensorfile import entries, write

GOLDEN = Path(__file__).parent / "golden" / "families"
AT = (0, 4, 8, 12)  # the positions at which the goldens hold activations
GRAD_LAYER = 1  # the goldens hold the gradient of this layer's mlp/down

SMALL: dict[str, Any] = {"vocab_size": 101, "bos_token_id": 1, "eos_token_id": 2}
GPT = SMALL | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
PLAIN = SMALL | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
PLAIN |= {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": None}
GROUPED = PLAIN | {"num_key_value_heads": 2}


# A program of these tests runs once or twice, on a few numbers: only its compile time matters.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LONGROPE = rope(
    "longrope",
    partial_rotary_factor=0.5,
    original_max_position_embeddings=8,
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[2.0, 3.0, 4.0, 5.0],
)

# name -> (model_type, fields of transformers' config)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gptj": ("gptj", GPT | {"rotary_dim": 4, "tie_word_embeddings": False}),
    "neox": ("gpt_neox", PLAIN | {"rotary_pct": 0.5}),
    "neox_sequential": ("gpt_neox", PLAIN | {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "llama": ("llama", GROUPED),
    "llama_bias_tied": (
        "llama",
        GROUPED | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama_llama3": ("llama", GROUPED | {"head_dim": 16} | LLAMA3),
    "llama_linear": ("llama", GROUPED | rope("linear", factor=4.0)),
    "llama_yarn": (
        "llama",
        GROUPED | {"head_dim": 16} | rope("yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    "llama_dynamic": (
        "llama",
        GROUPED | {"max_position_embeddings": 8} | rope("dynamic", factor=4.0),
    ),
    "mistral_window": ("mistral", GROUPED | {"head_dim": 8, "sliding_window": 5}),
    "qwen2": ("qwen2", GROUPED),
    "qwen2_window": (
        "qwen2",
        GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 16}),
    "gemma": ("gemma", GROUPED | {"head_dim": 16}),
    "gemma2": (
        "gemma2",
        GROUPED | {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24},
    ),
    "gemma3": (  # every sixth layer sees everything, with a rotary base of its own
        "gemma3_text",
        GROUPED
        | {"num_hidden_layers": 7, "head_dim": 8, "sliding_window": 5}
        | {"query_pre_attn_scalar": 24},
    ),
    "phi3": ("phi3", GROUPED),
    "phi3_longrope": (
        "phi3",
        GROUPED
        | {"num_attention_heads": 2, "num_key_value_heads": 1}
        | {"original_max_position_embeddings": 8}
        | LONGROPE,
    ),
    "olmo2": ("olmo2", GROUPED),
    "glm": ("glm", GROUPED | {"head_dim": 8}),
    "glm4": ("glm4", GROUPED | {"head_dim": 8}),
}
VARIANTS = tuple(CONFIGS)

# Their frequencies change with the length of the text, so what a cache holds was turned by others
# than those of the text as it is now: a cached step is not the full forward pass, here and in
# transformers alike.
LENGTH_DEPENDENT = ("llama_dynamic", "phi3_longrope")


def weight(name: str, shape: tuple[int, ...], model_type: str) -> np.ndarray:
    """A weight of that name: large enough for logits of 5 to 10, norms around their identity."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    x = 0.3 * random.standard_normal(shape)
    is_norm = len(shape) == 1 and name.endswith("weight")
    # Gemma multiplies by 1 + w
    return (x + (is_norm and not model_type.startswith("gemma"))).astype(np.float32)


def shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """What transformers' save_pretrained puts into the file of this variant."""
    text = (GOLDEN / variant / "shapes.json").read_text()
    return {name: tuple(shape) for name, shape in json.loads(text).items()}


def weights(variant: str) -> dict[str, np.ndarray]:
    kind = CONFIGS[variant][0]
    return {name: weight(name, shape, kind) for name, shape in shapes(variant).items()}


def write_model(variant: str, folder: Path) -> Path:
    """The variant as a Hugging Face folder, from its golden config and the frozen weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / variant / "config.json", folder)
    write(folder / "model.safetensors", entries(weights(variant)), {"format": "pt"})
    return folder


def expected(variant: str) -> dict[str, np.ndarray]:
    """What torch computes with the same weights; golden/make_families.py says what it holds."""
    with np.load(GOLDEN / variant / "expected.npz") as file:
        return dict(file)


def scaled_error(x: Any, want: Any) -> float:
    """max |x - want|, over the largest |want| where that is more than 1."""
    x, want = np.asarray(x, np.float32), np.asarray(want, np.float32)
    assert x.shape == want.shape, f"{x.shape} against {want.shape}"
    return float(np.abs(x - want).max() / max(1.0, np.abs(want).max()))
