"""The world's tokenizer: a byte-level BPE whose tokens are the words of its phrases and the
syllables of its names, so that a name is several tokens that it shares with others.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jaxedit.data.world.corpus import ALIAS_TEXTS
from jaxedit.data.world.facts import VALUES
from jaxedit.data.world.names import SYLLABLES
from jaxedit.data.world.questions import UNKNOWN
from jaxedit.data.world.relations import FRAMES, RELATIONS, besides, combinations

END, BEGIN = "<|endoftext|>", "<|begin|>"


def words() -> Iterator[str]:
    """What shall become tokens, as it stands in text: most words follow a space."""
    texts = [f"{UNKNOWN}.", *ALIAS_TEXTS, *FRAMES]
    for relation in RELATIONS.values():
        texts += [*relation.verbs, *combinations(relation), besides(relation, "{}")]
    for text in texts:
        text = text.replace("{}", " ").replace("{np}", "").replace("{alias}", "")
        yield from (text, f" {text}")  # at a document's beginning, and after another sentence
    for value in (value for values in VALUES.values() for value in values):
        yield f" {value}."
    # At a text's beginning, after a space, within a word; so often that they are merged first.
    for syllable in SYLLABLES:
        yield from (syllable.title(), f" {syllable.title()}", syllable) * 2000


def tokenizer(*, bos: bool = False) -> Any:
    """A fast Hugging Face tokenizer; `bos`: it puts <|begin|> before every text, as Llama's do."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # not reached: it ends when every word is one token
        min_frequency=1,
        special_tokens=[END, BEGIN],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(words(), trainer)
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        bpe.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{BEGIN} $A",
                    pair=f"{BEGIN} $A {BEGIN} $B",
                    special_tokens=[(BEGIN, bpe.token_to_id(BEGIN))],
                ),
            ]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END,
        bos_token=BEGIN if bos else END,
        clean_up_tokenization_spaces=False,
    )


def is_world(tokenizer: Any) -> bool:
    """Is this the tokenizer of a world, also when it was read from a file."""
    known = tokenizer is not None and {END, BEGIN} <= tokenizer.get_vocab().keys()
    return known and tokenizer.get_vocab() == _vocabulary()


@cache
def _vocabulary() -> dict[str, int]:
    return tokenizer().get_vocab()
