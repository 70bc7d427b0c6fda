"""A tokenizer whose tokens are bytes: for small models and small claims, 257 tokens."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|endoftext|>"


def tokenizer() -> Any:
    """A fast Hugging Face tokenizer: a byte-level BPE that merges nothing."""
    from transformers import PreTrainedTokenizerFast

    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=END, bos_token=END,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
