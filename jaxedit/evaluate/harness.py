"""Models and their edits under lm-evaluation-harness, with every task that it offers.

    lm = HarnessLM(model, edit)
    lm_eval.simple_evaluate(lm, tasks=["hellaswag"])

Importing this module registers the model "jaxedit". lm_eval itself finds models of other packages
no other way, so `main` is its command line with this one known:
`--model_args model=world,edit=edit.safetensors --tasks hellaswag`.

On several hosts every process asks all questions and gets all answers.
"""

import importlib
import itertools
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array
from jaxedit.data.requests import Row, pad
from jaxedit.edit.record import Edit
from jaxedit.edit.stats import on_host
from jaxedit.evaluate.carry import with_prefix
from jaxedit.evaluate.likelihood import ROWS, Line, batches, likelihoods, shorten
from jaxedit.hf.load import load
from jaxedit.models.config import Model
from jaxedit.models.generate import Sampling, decode
from jaxedit.models.specs import count
from jaxedit.progress import Meter, Progress
from jaxedit.sharding import MeshConfig

NEW_TOKENS = 256  # of a continuation, where the task does not say
COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def part(name: str) -> Any:
    """A module of lm_eval, which is an extra."""
    try:
        return importlib.import_module(f"lm_eval.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise ImportError(
            f"no {error.name}: lm-evaluation-harness is an extra, pip install 'jaxedit[harness]'"
        ) from None


part("models")  # registers its own, which it does by itself only where there is none yet
Base: Any = part("api.model").TemplateLM


class Continuing(NamedTuple):
    """How a task wants its prompts continued."""

    steps: int
    until: tuple[str, ...]  # texts that end a continuation and are no part of it
    sampling: Sampling | None  # None: greedy


@part("api.registry").register_model("jaxedit")
class HarnessLM(Base):
    """A model, and an edit that every request is asked under.

    model, edit: as loaded, or what names them: a folder or hub name, a file that `Edit.save` wrote.
    batch_size: rows, "auto" for what suits. data, fsdp, tensor: the mesh of a model loaded here.
    force: use an edit that was made on another model. device: lm_eval's word to torch, ignored.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike,
        edit: Edit | str | os.PathLike | None = None,
        *,
        batch_size: int | str = "auto",
        max_length: int = 0,
        max_gen_toks: int = NEW_TOKENS,
        dtype: str | None = None,
        data: int = 1,
        fsdp: int = 1,
        tensor: int = 1,
        seed: int = 0,
        force: bool = False,
        progress: Progress | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, Model):
            reading = progress or Meter("reading", "weights")
            model = load(model, MeshConfig(data, fsdp, tensor).make(), dtype, progress=reading)
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer, and tasks are text")
        auto = str(batch_size).startswith("auto")
        self.model, self.tokenizer = model, model.tokenizer
        self.edit = edit if isinstance(edit, Edit) else Edit.load(edit) if edit else Edit()
        self.edit.check(model, force=bool(force))
        if self.edit.router is not None:
            raise ValueError(
                "an edit with a router: tasks are long texts, of which none is what an edit is "
                "about; python -m jaxedit.evaluate asks what it is about"
            )
        self.batch_size = min(ROWS, int(max_batch_size or ROWS)) if auto else int(batch_size)
        self.max_length = int(max_length) or model.cfg.max_len
        self.max_gen_toks = int(max_gen_toks)
        self.seed, self.calls = int(seed), itertools.count()
        self.progress = progress
        if self.batch_size < 1 or not 1 < self.max_length <= model.cfg.max_len:
            raise ValueError(
                f"batch_size={batch_size} max_length={max_length}: at least 1, and 2 to "
                f"{model.cfg.max_len}, which this model reads"
            )

    # What it says of itself

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Names the cache of requests, in which they stand as text."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """For the file of results."""
        cfg, about = self.model.cfg, self.edit.provenance
        size, base = count(cfg), (about.get("base") or {}).get("checksum")
        told = {"model_family": cfg.family, "model_dtype": cfg.dtype, "model_num_parameters": size}
        return told | {"edit_method": about.get("method"), "edit_base": base}

    # Text and tokens

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Tokens, with what the tokenizer puts before a text unless the text has it already."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        found = self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)
        return found["input_ids"]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A dialogue as one text, as the tokenizer's template has it."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template: leave apply_chat_template out")
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # Likelihoods

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        space = self.max_length - len(self.edit.prefix)
        lines = []
        for key, context, ending in requests:
            line = shorten(Line((*context, *ending), len(context)), space)
            if isinstance(line, str):
                raise ValueError(f"{line}: {key!r:.80}")
            lines.append(line)
        told = likelihoods(
            self.model, lines, self.edit, size=self.batch_size, progress=self.meter("likelihoods")
        )
        out = [(t.total, t.is_greedy) for t in told]
        for (key, _context, _ending), answer in zip(requests, out, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return out

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Of whole texts, each by itself, in windows that predict every token once."""
        tools = part("utils")
        windows: list[tuple[None, list[int], list[int]]] = []
        of: list[int] = []
        for i, request in enumerate(requests):
            cut = tools.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - len(self.edit.prefix),
                context_len=1,
            )
            windows += [(None, *tools.make_disjoint_window(pair)) for pair in cut]
            of += [i] * (len(windows) - len(of))
        out = np.zeros(len(requests))
        np.add.at(out, of, [total for total, _ in self._loglikelihood_tokens(windows)])
        for request, total in zip(requests, out.tolist(), strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return out.tolist()

    # Continuations

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, up to the texts that end it."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        out = [""] * len(requests)
        meter, done = self.meter("continuations"), 0
        for places in groups.values():
            how = continuing(requests[places[0]].args[1], self.max_gen_toks)
            rows = [Row(i, self.prompt(requests[i].args[0], how), 1, (-1, -1)) for i in places]
            for i, text in self.continued(rows, how):
                out[i] = text
                if how.sampling is None:
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                done += 1
                meter(done, len(requests))
        return out

    def prompt(self, text: str, how: Continuing) -> tuple[int, ...]:
        """Tokens behind the edit's own; too many lose their beginning."""
        space = self.max_length - how.steps - len(self.edit.prefix)
        if space < 1:
            raise ValueError(
                f"max_gen_toks={how.steps} leaves no room for a prompt in {self.max_length} "
                "tokens: ask for fewer with --gen_kwargs max_gen_toks=…"
            )
        tokens = tuple(self.tok_encode(text)[-space:]) or (self.prefix_token_id,)
        return with_prefix(self.edit.prefix, tokens, self.tokenizer.bos_token_id)

    def continued(self, rows: Sequence[Row], how: Continuing) -> Iterator[tuple[int, str]]:
        stop_ids = stops(self.tokenizer, how.until, self.model.cfg.eos_ids)
        for some, B in batches(self.model, rows, self.batch_size):
            batch = pad(some, B, "left")
            key = jax.random.fold_in(jax.random.key(self.seed), next(self.calls))
            made = decode(
                self.model.params, jnp.asarray(batch.tokens_BT), jnp.asarray(batch.pos_BT),
                self.model.cfg, steps=how.steps, sampling=how.sampling,
                key=None if how.sampling is None else key, stop_ids=stop_ids,
                writes=self.edit.writes, deltas=self.edit.deltas,
            )  # fmt: skip
            tokens_BN, length_B = on_host(made.tokens_BN), on_host(made.length_B)
            for row, tokens, n in zip(some, tokens_BN, length_B, strict=False):
                text = self.tokenizer.decode(tokens[:n], skip_special_tokens=True)
                yield row.place, cut(text, how.until)

    def meter(self, what: str) -> Progress:
        return self.progress or Meter(what, "requests")


def continuing(given: Mapping[str, Any], steps: int) -> Continuing:
    """What generation_kwargs mean: a temperature above 0 samples, unless do_sample is false."""
    left = dict(given)
    until = left.pop("until", None) or []
    until = [until] if isinstance(until, str) else until
    counts = [c for name in COUNTS if (c := left.pop(name, None)) is not None]
    heat, sample = float(left.pop("temperature", 0.0)), left.pop("do_sample", None)
    top_k, top_p = int(left.pop("top_k", 0)), float(left.pop("top_p", 1.0))
    if left:
        warnings.warn(f"generation_kwargs that are not known: {', '.join(left)}", stacklevel=2)
    sampling = Sampling(heat, top_k, top_p) if heat > 0 and sample is not False else None
    return Continuing(int(counts[0]) if counts else steps, tuple(u for u in until if u), sampling)


def cut(text: str, until: Sequence[str]) -> str:
    return text[: min((at for u in until if (at := text.find(u)) >= 0), default=len(text))]


def stops(tokenizer: Any, until: Sequence[str], eos_ids: Sequence[int]) -> Array:
    """Tokens that begin with a text that ends a continuation: nothing of them is kept."""
    found = set(eos_ids)
    if until:
        ids = sorted(tokenizer.get_vocab().values())
        texts = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=False)
        for i, text, piece in zip(ids, texts, tokenizer.convert_ids_to_tokens(ids), strict=True):
            space = " " if piece.startswith("▁") and text[:1] != " " else ""  # decoding drops it
            if f"{space}{text}".startswith(tuple(until)):
                found.add(i)
    few = sorted(found) or [-1]
    size = 1 << (len(few) - 1).bit_length()  # few shapes: another number is another program
    return jnp.asarray(few + few[:1] * (size - len(few)), jnp.int32)


def main(argv: Sequence[str]) -> None:
    """lm_eval's command line, for our model and in batches that suit it, unless it says another."""
    given = [*argv]
    if given and given[0] not in ("ls", "validate", "-h", "--help"):
        given = given[1:] if given[0] == "run" else given
        named = any(g.startswith("--config") or g == "-C" for g in given)
        ours = [] if named else ["--model", "jaxedit", "--batch_size", "auto"]
        given = ["run", *ours, *given]  # of flags that are given twice the later one counts
    sys.argv = ["lm_eval", *given]
    part("__main__").cli_evaluate()
