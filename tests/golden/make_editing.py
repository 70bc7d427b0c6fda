"""Copies what the tests of editing compare with out of the recorded runs of the authors' code.

    python tests/golden/make_editing.py ../shared/goldens

Kept: the model, the covariances, per request the search's record and result, the updates, and the
logits after them. Left out: what can be computed from the rest.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "editing"
ROME = "target_ids|lookup_idxs|step_loss|step_delta|u|target_init|right_vector|u_keys_per_context"
ROME += "|prompt_ids|logits_after|v_star|input_ids|rewriting_targets|u_key_mean"
SEARCH, UPDATE = "step_loss|step_delta|u|right_vector", r"layer\d/update_matrix"
ALPHA = r"layer0/P|r\d/z_star|b\d/layer\d/(upd_matrix|layer_ks)|.*cache_c_after.*"
FT = r"(prompt_last|target_new)/(default|lr5e-3_free)/r[01]"
KEEP = {
    "rome/base": rf"r\d/({ROME})$",
    "rome/no_mom2": r"r\d/(u|right_vector|logits_after|prompt_ids)$",
    "rome/layer1": rf"r\d/({SEARCH})$",
    "rome/layer1_early_stop": rf"r\d/({SEARCH})$",
    "rome/layer1_clamp0p75": rf"r\d/({SEARCH})$",
    "rome/last_token": r"r\d/(step_loss|u|target_init|prompt_ids|lookup_idxs)$",
    "memit/base": r"(r\d/(step_loss|step_delta|z_star|logits_after|prompt_ids)"
    rf"|layer\d/(keys|resid|adj_k)|{UPDATE})$",
    "memit/lambda20000": rf"(r\d/z_star|{UPDATE})$",
    "memit/layers01_clamp4_lambda0p1": rf"(r\d/z_star|{UPDATE})$",
    "alphaedit/base": rf"({ALPHA}|r\d/(logits_after_batch|prompt_ids))$",
    "alphaedit/L2_10": r"(r\d/z_star|b\d/layer\d/upd_matrix)$",
    "ft/gpt2-tiny": rf"{FT}/(losses|delta/.*|prompt_ids|target_ids|full_ids)$",
    "knowledge_neurons/gpt2-tiny": r".*/(attr_steps20|prompt_ids|target_ids|baseline_acts)$",
    "mend/networks": r"a/(u1|v1|u2|v2|(combine_.*|lowrank_nohid2|nonorm)/.*)$",
    "mend/gpt2-tiny": r"(mend_init/.*|edit_lrs|s\d/(inner|outer|loc|grad|update|stats_after)/.*)$",
    "cov/gpt2-tiny_cov": r"(token_ids_flat|seq_lengths|C_layer[012]_float32|count_layer0)$",
}


def main(source: str) -> None:
    for name, pattern in KEEP.items():
        arrays = np.load(f"{source}/{name}.npz")
        kept = {k: arrays[k] for k in arrays.files if re.match(pattern, k)}
        file = HERE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **{k: shrink(v) for k, v in kept.items()})
        if Path(f"{source}/{name}.json").exists():
            about = json.loads(Path(f"{source}/{name}.json").read_text())
            fields = ("hparams", "context_templates", "projections", "runs", "edits")
            fields += ("rows",) if name.startswith("knowledge_neurons") else ()
            about = {k: about[k] for k in fields if k in about}
            (HERE / f"{name}.json").write_text(json.dumps(about))
    for file in ("requests.json", "cov/cov_texts.json"):
        shutil.copy(f"{source}/{file}", HERE / Path(file).name)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (HERE / "gpt2-tiny").mkdir(exist_ok=True)
        shutil.copy(f"{source}/models/gpt2-tiny/{file}", HERE / "gpt2-tiny" / file)


def shrink(x: np.ndarray) -> np.ndarray:
    """Token numbers need no eight bytes."""
    return x.astype(np.int32) if x.dtype == np.int64 else x


if __name__ == "__main__":
    main(*sys.argv[1:])
