"""A tokenizer that needs no download: a token is a byte of UTF-8."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: ids 0 to 255 are the bytes, 256 ends a text.

    Every text is encoded without loss. Saved with a model it is an ordinary `tokenizer.json`, so
    that `AutoTokenizer` loads it without this package.
    """
    vocabulary = {symbol: byte for byte, symbol in enumerate(_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )


def _symbols() -> list[str]:
    """The visible characters that stand for the bytes in a byte-level vocabulary, as in GPT-2's."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]
