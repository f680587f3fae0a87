"""Tiny models and a tokenizer for the heads' tests."""

import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [f"w{index}" for index in range(90)]
_TOKENS = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
MODELS = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_TOKENS, **_SIZES)),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**_TOKENS, **_SIZES)),
    "distilbert": lambda: hf.DistilBertForMaskedLM(
        hf.DistilBertConfig(**_TOKENS, dim=24, n_layers=2, n_heads=4, hidden_dim=32)
    ),
    "deberta": lambda: hf.DebertaV2Model(
        hf.DebertaV2Config(
            **_TOKENS, **_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]
        )
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(**_TOKENS, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TOKENS, **_SIZES)),
    "llama classifier": lambda: hf.LlamaForSequenceClassification(
        hf.LlamaConfig(**_TOKENS, **_SIZES)
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(**_TOKENS, n_embd=24, n_layer=2, n_head=4, n_positions=40)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            **_TOKENS,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=32,
            max_position_embeddings=40,
            word_embed_proj_dim=24,
        )
    ),
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(**_TOKENS, hidden_size=24, n_layer=2, n_head=4)
    ),
}
ENCODERS = ("bert", "roberta", "distilbert", "deberta", "t5")


def build(name: str) -> hf.PreTrainedModel:
    """One of MODELS with weights far enough from zero to tell texts apart; seed it before."""
    model = MODELS[name]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)
    return model.eval()


def tokenizer(pad: bool = True, frame: bool = True) -> hf.PreTrainedTokenizerFast:
    """A word a token, ids from 3 on, between the tokens 1 and 2 where `frame` says so."""
    special = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2}
    ids = special | {word: 3 + index for index, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if frame:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    found = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, cls_token="[CLS]", sep_token="[SEP]", unk_token="w0"
    )
    if pad:
        found.pad_token = "[PAD]"
    return found
