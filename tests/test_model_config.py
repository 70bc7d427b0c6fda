"""Configs of architectures: what cannot be is told at once, in one line."""

import pytest

from jaxedit.models.config import CHOICES, Rope
from jaxedit.models.layers import ACTS
from jaxedit.models.shapes import SHAPES

GPT2, LLAMA = SHAPES["tiny-gpt2"], SHAPES["tiny-llama"]


@pytest.mark.parametrize(
    ("cfg", "changes", "message"),
    [
        (GPT2, {"norm": "batch"}, "norm='batch': one of 'layer', 'rms', 'rms1p'"),
        (GPT2, {"act": "swish"}, "act='swish': one of 'silu', 'gelu', 'gelu_tanh', 'relu'"),
        (LLAMA, {"qk_norm": "heads"}, "qk_norm='heads': one of '', 'head', 'full'"),
        (GPT2, {"heads": 3}, "kv_heads=4: a divisor of heads=3"),
        (LLAMA, {"kv_heads": 3}, "kv_heads=3: a divisor of heads=4"),
        (LLAMA, {"kv_heads": 0}, "kv_heads=0: a divisor of heads=4"),
        (LLAMA, {"rotary_dim": 5}, "rotary_dim=5: an even number, at most head_dim=8"),
        (LLAMA, {"rotary_dim": 16}, "rotary_dim=16: an even number, at most head_dim=8"),
        (LLAMA, {"rotary_dim": -2}, "rotary_dim=-2: an even number"),
        (LLAMA, {"windows": (4,)}, "windows has 1 numbers: one for each of 4 layers, or none"),
        (LLAMA, {"rope_kind": (0, 0, 0)}, "rope_kind has 3 numbers: one for each of 4 layers"),
        (LLAMA, {"rope_kind": (0, 1, 0, 1)}, "each picks one of 1 ropes, from 0"),
    ],
)
def test_what_no_model_can_be_is_told(cfg, changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as error:
        cfg.replace(**changes)
    assert "\n" not in str(error.value)


def test_what_differs_between_layers_has_a_number_for_each():
    cfg = LLAMA.replace(windows=(4, 0) * 2, ropes=(Rope(), Rope(1e6)), rope_kind=(0, 1) * 2)
    assert cfg.replace(layers=2, windows=(), rope_kind=()).layers == 2


def test_the_activations_are_those_that_run():
    assert set(CHOICES["act"]) == set(ACTS)
