"""What the parameter tree cannot say by itself: sizes, and the choices that leave no trace in the
weights.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxedit.base import Params
from jaxedit.sharding import mesh_of

CHOICES = {
    "norm": ("layer", "rms", "rms1p"),  # rms1p: Gemma's, whose scale is 1 + w
    "act": ("silu", "gelu", "gelu_tanh", "relu"),
    "qk_norm": ("", "head", "full"),  # over a head's dimension, over all heads
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary frequencies: the base and one of the ways in which models stretch them to longer
    contexts.
    """

    theta: float = 10000.0
    kind: str = "default"  # default | linear | dynamic | llama3 | yarn | longrope
    factor: float = 1.0
    original_len: int = 0  # the context that the unstretched model was trained on
    low_freq: float = 1.0  # llama3
    high_freq: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()  # longrope
    long_factor: tuple[float, ...] = ()
    attention_factor: float = 1.0  # multiplies sin and cos


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """An architecture. Static under jit: two configs are two programs. No mesh, path or device in
    here.
    """

    family: str  # a key of hf.families.FAMILIES
    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    max_len: int
    norm: str = "rms"
    eps: float = 1e-5
    act: str = "silu"
    gated: bool = True
    parallel: bool = False  # attention and MLP both read the block's input
    pre_norm: bool = True  # False: only the outputs are normed (OLMo-2)
    post_norm: bool = False  # the outputs of attention and MLP are normed before they are added
    shared_norm: bool = False  # GPT-J: one norm feeds both attention and MLP
    qk_norm: str = ""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied: bool = False  # the head is the embedding, transposed
    learned_pos: bool = False
    rotary_dim: int = 0  # 0: no rotary
    rope_interleaved: bool = False  # pairs (0,1),(2,3)…; otherwise (i, i + half)
    ropes: tuple[Rope, ...] = (Rope(),)  # `rope_kind` picks one per layer (Gemma 3 has two)
    rope_kind: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()  # per layer: how far attention reaches back, 0 = everywhere
    attn_scale: float | None = None  # None: head_dim ** -0.5
    embed_scale: float = 1.0
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    dtype: str = "float32"  # of activations; weights are cast where they are used
    attention: str = "auto"  # auto | einsum | cudnn | flash
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, allowed))}")
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads={self.kv_heads}: a divisor of heads={self.heads}, as several query "
                "heads share one of keys and values"
            )
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"rotary_dim={self.rotary_dim}: an even number, at most head_dim={self.head_dim}; "
                "0 for no rotary positions"
            )
        for name in ("windows", "rope_kind"):
            if (count := len(getattr(self, name))) not in (0, self.layers):
                raise ValueError(
                    f"{name} has {count} numbers: one for each of {self.layers} layers, or none"
                )
        if any(kind not in range(len(self.ropes)) for kind in self.rope_kind):
            raise ValueError(
                f"rope_kind={self.rope_kind}: each picks one of {len(self.ropes)} ropes, from 0"
            )

    def replace(self, **changes: Any) -> "ModelConfig":
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ModelConfig":
        """What `to_dict` gave, also after a round through JSON, which knows no tuples."""
        names = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - names):
            raise ValueError(f"not a model config: it has {unknown[0]!r}, which no config has")

        def freeze(d: dict[str, Any]) -> dict[str, Any]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in d.items()}

        fields = freeze(data)
        fields["ropes"] = tuple(Rope(**freeze(rope)) for rope in data["ropes"])
        return cls(**fields)


class Model(NamedTuple):
    """A model as one value. `tokenizer` is a Hugging Face tokenizer, or None for models that never
    see text.
    """

    params: Params
    cfg: ModelConfig
    tokenizer: Any = None

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        return mesh_of(self.params)


def inverse_frequencies(rope: Rope, dim: int, long: bool = False) -> np.ndarray:
    """Radians per position, [dim / 2] float32, for every kind but "dynamic", which depends on the
    length.
    """
    # in the reference's order of float32 operations: large scores amplify the last bit of an angle
    wave = np.float32(rope.theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    inv = np.float32(1) / wave
    match rope.kind:
        case "default" | "dynamic":
            return inv
        case "linear":
            return inv / np.float32(rope.factor)
        case "llama3":  # long waves are slowed by `factor`, short ones kept, those between mixed
            turns = rope.original_len * inv / (2 * math.pi)
            keep = np.clip((turns - rope.low_freq) / (rope.high_freq - rope.low_freq), 0, 1)
            return (inv * ((1 - keep) / rope.factor + keep)).astype(np.float32)
        case "yarn":
            bound = lambda turns: (
                dim
                * math.log(rope.original_len / (turns * 2 * math.pi))
                / (2 * math.log(rope.theta))
            )
            low, high = bound(rope.beta_fast), bound(rope.beta_slow)
            if rope.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, dim - 1)
            ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
            return (inv * (ramp / rope.factor + (1 - ramp))).astype(np.float32)
        case "longrope":
            factor = np.asarray(rope.long_factor if long else rope.short_factor, np.float32)
            return np.float32(1) / (factor * wave)
    raise ValueError(
        f"rope kind {rope.kind!r}: one of default, linear, dynamic, llama3, yarn, longrope"
    )
