"""Classes whose status is known from their source, and the parts that a probe is made of."""

import pytest
import torch
import transformers as hf

from hf_softext.attention.inputs import candidate_inputs
from hf_softext.attention.verify import verify_attention
from hf_softext.coverage.discover import load, model_classes
from hf_softext.coverage.probe import probe
from hf_softext.coverage.row import STATUSES
from hf_softext.coverage.tiny import LADDER, Size, tiny_config

# a default config may be deprecated in itself, and says so
pytestmark = pytest.mark.filterwarnings("ignore")

KNOWN = [
    ("llama.LlamaForCausalLM", "works", ""),
    ("llama.LlamaForSequenceClassification", "works", ""),
    ("bert.BertForMultipleChoice", "works", ""),
    ("gpt2.GPT2LMHeadModel", "works", ""),
    ("t5.T5ForConditionalGeneration", "works", ""),
    ("whisper.WhisperForConditionalGeneration", "works", ""),
    ("wav2vec2.Wav2Vec2ForCTC", "works", ""),
    ("vit.ViTForImageClassification", "works", ""),
    ("swin.SwinModel", "works", ""),
    ("clip.CLIPModel", "works", ""),
    ("llava.LlavaForConditionalGeneration", "works", ""),
    ("qwen3_vl.Qwen3VLModel", "works", ""),
    ("mixtral.MixtralModel", "works", ""),
    ("jamba.JambaModel", "works", ""),
    ("siglip.SiglipVisionModel", "in part", "MultiheadAttention"),
    ("bloom.BloomForCausalLM", "ignores", "BloomAttention"),
    ("deberta_v2.DebertaV2Model", "ignores", "DisentangledSelfAttention"),
    ("gpt_oss.GptOssModel", "refuses", "s_aux"),
    ("falcon.FalconModel", "error", "KeyError: 'stablemax'"),
    ("resnet.ResNetModel", "no attention", ""),
    ("dinat.DinatModel", "not run", "natten"),
]


@pytest.mark.parametrize(("name", "status", "reason"), KNOWN, ids=[name for name, *_ in KNOWN])
def test_status_of_known_classes(name, status, reason):
    row = probe(name, "stablemax")
    assert (row.name, row.status) == (name, status), row
    assert reason in " ".join((row.reason, *row.bypassed))
    if status == "works":
        # the method has an effect, and not because the outputs are random
        assert row.change is not None
        assert row.change > 1e-3
        assert row.reached > 0
        assert row.idle == 0


def test_the_known_classes_show_every_status():
    assert {status for _, status, _ in KNOWN} == set(STATUSES)


def test_softmax_itself_would_change_nothing(monkeypatch):
    from hf_softext.attention.stablemax import STABLEMAX
    from hf_softext.functional import masked_softmax

    # frozen, and used through transformers' registry: the one object is changed for a moment
    before = vars(STABLEMAX).copy()
    vars(STABLEMAX).update(weights=masked_softmax, row_map=None)
    try:
        row = probe("llama.LlamaModel", "stablemax")
    finally:
        vars(STABLEMAX).update(before)
    assert row.status == "works"
    assert row.change is not None
    assert row.change < 1e-5


def test_every_class_is_listed_once():
    names, broken = model_classes()
    assert len(names) == len(set(names)) > 1500
    assert {name for name, *_ in KNOWN} <= set(names)
    assert all(load(name).__name__ == name.split(".")[1] for name in names[::100])
    assert not {name.split(".")[0] for name in names} & set(broken)
    with pytest.raises(ValueError, match=r"no model class 'llama\.LlamaModle'"):
        load("llama.LlamaModle")


def test_shrinking_keeps_what_belongs_together():
    config = tiny_config(hf.JambaConfig, Size())
    # every fourth layer has attention by default: one layer of each kind is left
    assert {"attention", "mamba"} <= set(config.layers_block_type)
    assert config.hidden_size % config.num_attention_heads == 0
    gemma = tiny_config(hf.Gemma3TextConfig, Size())
    assert set(gemma.layer_types) == {"sliding_attention", "full_attention"}
    assert len(gemma.layer_types) == gemma.num_hidden_layers == 2
    qwen = tiny_config(hf.Qwen3VLTextConfig, Size())
    sections = qwen.rope_parameters["mrope_section"]
    assert len(sections) == 3
    assert min(sections) > 0
    assert sum(sections) * 2 == qwen.head_dim


def test_tokens_that_move_stay_distinct_and_inside_the_vocabulary():
    config = tiny_config(hf.Qwen3VLConfig, Size())
    ids = [value for key, value in vars(config).items() if key.endswith("_token_id")]
    ids = [value for value in ids if isinstance(value, int)]
    assert len(ids) == len(set(ids)) > 3
    assert max(ids) < config.text_config.vocab_size == 1000


def test_every_call_gives_a_config_of_its_own():
    one, two = (tiny_config(hf.LlamaConfig, LADDER[0]) for _ in range(2))
    one._attn_implementation = "stablemax"
    assert two._attn_implementation != "stablemax"


def test_inputs_put_as_many_image_tokens_into_the_text_as_there_are_features():
    cls = load("llava.LlavaForConditionalGeneration")
    model = cls._from_config(tiny_config(cls.config_class, Size())).eval()
    inputs = next(candidate_inputs(model))
    with torch.no_grad():
        features = model.get_image_features(pixel_values=inputs["pixel_values"])
    count = sum(part.shape[0] for part in features.pooler_output)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == count > 1


def test_verify_says_which_part_had_nothing_to_do():
    cls = load("llava.LlavaForConditionalGeneration")
    config = tiny_config(cls.config_class, Size())
    model = cls._from_config(config, attn_implementation="stablemax")
    text = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    report = verify_attention(model, text)
    assert len(report.idle) == 2
    assert all("vision" in name for name in report.idle)
    assert str(report).endswith("; 2 did not run")
    assert verify_attention(model).idle == []


def test_an_argument_without_a_rule_is_named():
    class Odd(torch.nn.Module):
        config = hf.BertConfig()
        main_input_name = "smells"

        def forward(self, smells, colour=None):
            return smells

    with pytest.raises(ValueError, match="Odd, which needs 'smells': pass `inputs`"):
        next(candidate_inputs(Odd()))
