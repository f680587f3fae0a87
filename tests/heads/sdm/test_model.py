"""A head behind real models: texts in, verdicts out, and never behind another model."""

import copy
import json
from functools import cache

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import normalizers
from transformers import (
    AutoModelForCausalLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaModel,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from hf_softext import BaqConfig
from hf_softext.heads.features import backbone_fingerprint, extract_features
from hf_softext.heads.sdm import SdmConfig, SdmHead
from hf_softext.heads.sdm.model import SdmForSequenceClassification
from hf_softext.heads.sdm.pipeline import SdmTextClassificationPipeline
from hf_softext.quantization.baq.calibrate import quantize_model
from hf_softext.registration import register_pipelines
from tests.heads.sdm.cases import may_be_empty, same
from tests.heads.tiny import WORDS, build, tokenizer

TASK = "sdm-text-classification"
SETTINGS = {
    "alpha": 0.8,
    "epochs": 25,
    "num_splits": 1,
    "exemplar_dim": 12,
    "learning_rate": 1e-2,
    "progress": False,
}


def texts(count, seed=0):
    """Two classes of texts, of words of their own; no text twice."""
    draw, found = torch.Generator().manual_seed(seed), {}
    while len(found) < count:
        label = len(found) % 2
        length = int(torch.randint(3, 12, (), generator=draw))
        words = torch.randint(45 * label, 45 * label + 45, (length,), generator=draw)
        found[" ".join(WORDS[word] for word in words)] = label
    return [{"text": text, "label": label} for text, label in found.items()]


def made(name, change=lambda model: model):
    torch.manual_seed(3)
    model = change(build(name))
    return model, SdmHead.fit(model, tokenizer(), texts(300), **SETTINGS)


@cache
def verified(name):
    return SdmForSequenceClassification.from_backbone(*made(name))


def encoded(rows, side="right"):
    words = tokenizer()
    words.padding_side = side
    return words([row["text"] for row in rows], padding=True, return_tensors="pt")


def verdicts(output):
    return output.prediction.tolist(), output.admit.tolist(), output.reason


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_padding_batches_and_features_agree(name):
    model = verified(name)
    held_out = texts(60, seed=1)
    right, left = (model(**encoded(held_out, side)) for side in ("right", "left"))
    assert verdicts(right) == verdicts(left)
    torch.testing.assert_close(right.probs, left.probs, atol=1e-4, rtol=1e-4)
    single = [model(**encoded([row])) for row in held_out[:8]]
    torch.testing.assert_close(
        torch.cat([one.probs for one in single]), right.probs[:8], atol=1e-4, rtol=1e-4
    )
    features = extract_features(model.model, tokenizer(), held_out, progress=False)
    torch.testing.assert_close(model.head(features).probs, right.probs, atol=1e-4, rtol=1e-4)
    wanted = torch.tensor([row["label"] for row in held_out])
    assert right.admit.any()
    assert (right.prediction == wanted)[right.admit].float().mean() > 0.8


def test_what_a_model_of_its_own_has_goes_along():
    model = verified("bert")
    inputs = encoded(texts(4, seed=2))
    output = model(**inputs, labels=torch.zeros(4, dtype=torch.int64))
    assert output.probs.shape == (4, 2)
    # the backbone's own predictions are still to be had
    assert model.model(**inputs).logits.shape == (4, 2)
    assert not output.probs.requires_grad
    empty = model(**{name: value[:0] for name, value in inputs.items()})
    assert empty.probs.shape == (0, 2)
    assert empty.reason == []


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "distilbert", "t5"])
def test_model_and_head_are_saved_as_one(tmp_path, name):
    model = verified(name)
    model.save_pretrained(tmp_path)
    loaded = SdmForSequenceClassification.from_pretrained(tmp_path)
    assert same(model.head, loaded.head)
    inputs = encoded(texts(20, seed=3))
    assert torch.equal(model(**inputs).probs, loaded(**inputs).probs)
    # a head alone needs its model
    model.head.save_pretrained(tmp_path / "alone")
    with pytest.raises(OSError, match="holds a head alone"):
        SdmForSequenceClassification.from_pretrained(tmp_path / "alone")
    again = SdmForSequenceClassification.from_pretrained(tmp_path / "alone", model=model.model)
    assert torch.equal(model(**inputs).probs, again(**inputs).probs)


def test_a_backbone_without_a_pooler_comes_back_without_one(tmp_path):
    torch.manual_seed(3)
    plain = build("bert").bert
    body = BertModel(plain.config, add_pooling_layer=False)
    body.load_state_dict(plain.state_dict(), strict=False)
    body.eval()
    head = SdmHead.fit(body, tokenizer(), texts(200), **SETTINGS)
    SdmForSequenceClassification.from_backbone(body, head).save_pretrained(tmp_path)
    loaded = SdmForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.model.pooler is None


@may_be_empty
def test_a_head_behind_another_model_is_refused(tmp_path):
    model = verified("bert")
    model.save_pretrained(tmp_path)
    other = build("bert")
    for wrong in (other, build("llama"), build("bert").bfloat16()):
        with pytest.raises(ValueError, match="fitted on"):
            SdmForSequenceClassification.from_backbone(wrong, model.head)
    with pytest.raises(ValueError, match="fitted on"):
        SdmHead.from_pretrained(tmp_path, model=other)
    # other weights in the folder, as after training on
    BertForSequenceClassification(other.config).bert.save_pretrained(tmp_path / "backbone")
    with pytest.raises(ValueError, match="digest"):
        SdmForSequenceClassification.from_pretrained(tmp_path)
    alone = SdmHead.fit_features(
        torch.randn(90, 48), torch.arange(90) % 2, **SETTINGS | {"epochs": 2}
    )
    with pytest.raises(ValueError, match="fitted on features alone"):
        SdmForSequenceClassification(model.model, alone)


def test_neither_training_mode_nor_a_cast_changes_what_is_admitted():
    model, inputs = copy.deepcopy(verified("bert")), encoded(texts(20, seed=4))
    before = model(**inputs)
    # dropout would be at work
    model.train()
    assert torch.equal(model(**inputs).probs, before.probs)
    assert all(module.training for module in model.model.modules())
    with pytest.raises(ValueError, match=r"is torch\.bfloat16 now, and was torch\.float32"):
        model.bfloat16()(**inputs)


def quantized(model):
    quantize_model(model, BaqConfig(bits=8, solver="rtn", allocation="uniform"))
    return model


@pytest.mark.parametrize("kind", ["bfloat16", "baq"])
def test_backbones_of_few_bits(tmp_path, kind):
    change = quantized if kind == "baq" else lambda model: model.bfloat16()
    model = SdmForSequenceClassification.from_backbone(*made("llama", change))
    held_out = texts(60, seed=1)
    right, left = (model(**encoded(held_out, side)) for side in ("right", "left"))
    assert right.probs.dtype == torch.float32
    assert right.admit.any()
    # rounding of the backbone may move rows near a threshold
    alike = [one == other for one, other in zip(right.reason, left.reason, strict=True)]
    assert sum(alike) >= 54


@may_be_empty
def test_a_quantized_backbone_is_saved_with_its_head(tmp_path):
    build("llama").save_pretrained(tmp_path / "plain")
    config = BaqConfig(bits=8, solver="rtn", allocation="uniform")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config)
    head = SdmHead.fit(model, tokenizer(), texts(100), **SETTINGS | {"epochs": 2})
    whole = SdmForSequenceClassification.from_backbone(model, head)
    whole.save_pretrained(tmp_path / "whole")
    loaded = SdmForSequenceClassification.from_pretrained(tmp_path / "whole")
    inputs = encoded(texts(20, seed=3))
    assert torch.equal(whole(**inputs).probs, loaded(**inputs).probs)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_belong_to_the_backbone(tmp_path):
    config = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    model, head = made("llama", lambda model: get_peft_model(model, config).eval())
    whole = SdmForSequenceClassification.from_backbone(model, head)
    assert whole(**encoded(texts(5, seed=4))).probs.shape == (5, 2)
    with pytest.raises(ValueError, match="adapters"):
        whole.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fitted on"):
        SdmForSequenceClassification.from_backbone(model.unload(), head)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_pipeline_tells_the_same_in_batches_and_alone(tmp_path, side):
    register_pipelines()
    words = tokenizer()
    words.padding_side = side
    model = verified("llama")
    held_out = [row["text"] for row in texts(11, seed=5)]
    pipe = pipeline(TASK, model=model, tokenizer=words, device="cpu")
    batched, alone = pipe(held_out, batch_size=4), [pipe(text) for text in held_out]
    output = model(**encoded(texts(11, seed=5)))
    for row, (one, other) in enumerate(zip(batched, alone, strict=True)):
        assert one.keys() == other.keys()
        assert one["reason"] == other["reason"] == output.reason[row]
        assert one["admit"] == (one["reason"] == "admitted")
        assert one["label"] == str(int(output.prediction[row]))
        for name in ("score", "score_lower", "similarity", "distance"):
            assert one[name] == pytest.approx(other[name], abs=1e-4)
        assert one["score"] == pytest.approx(float(output.probs[row].max()), abs=1e-4)
        assert one["score_lower"] <= one["score"] + 1e-6
        assert one["exemplars"][0]["id"] == output.nearest_id[row]
        known = {row["text"]: row["label"] for row in texts(300)}
        for exemplar in one["exemplars"]:
            assert exemplar["label"] == str(known[exemplar["text"]])
        assert len(one["exemplars"]) == 3
    assert len(pipe(held_out[0], top_exemplars=1)["exemplars"]) == 1
    assert json.loads(json.dumps(batched)) == batched
    # saved and named by its folder, without code in it
    pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert pipeline(TASK, model=str(tmp_path), device="cpu")(held_out, batch_size=4) == batched


def test_the_pipeline_refuses_other_models_and_registers_once():
    register_pipelines()
    before = PIPELINE_REGISTRY.supported_tasks[TASK]
    register_pipelines()
    assert PIPELINE_REGISTRY.supported_tasks[TASK] is before
    assert TASK in PIPELINE_REGISTRY.get_supported_tasks()
    with pytest.raises(TypeError, match="from_backbone"):
        pipeline(TASK, model=build("bert"), tokenizer=tokenizer(), device="cpu")
    for option in ("top_k", "top_exemplar"):
        with pytest.raises(TypeError, match=f"'{option}' is no option of {TASK}"):
            pipeline(TASK, model=verified("bert"), tokenizer=tokenizer(), **{option: 1})
    with pytest.raises(ValueError, match="tokenizer is missing"):
        SdmTextClassificationPipeline(verified("bert"), device="cpu")("w1")


def test_texts_that_the_model_overflows_on_are_refused_by_name():
    model = verified("llama")
    pipe = pipeline(TASK, model=model, tokenizer=tokenizer(), device="cpu")
    norm = model.model.base_model.norm
    kept = norm.weight.data.clone()
    norm.weight.data.fill_(float("inf"))
    try:
        found = pipe("w1 w2 w3")
    finally:
        norm.weight.data.copy_(kept)
    assert (found["label"], found["reason"], found["admit"]) == (None, "non_finite", False)
    assert found["exemplars"] == []


def test_names_come_from_the_data(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = texts(200)
    data = datasets.Dataset.from_list(rows, features=features)
    torch.manual_seed(3)
    model, words = build("bert"), tokenizer()
    head = SdmHead.fit(model, words, data, work_dir=tmp_path / "work", **SETTINGS)
    assert head.config.id2label == {0: "no", 1: "yes"}
    assert head.config.backbone == backbone_fingerprint(model)
    named = [
        {**row, "label": ["bad", "good"][row["label"]], "key": n} for n, row in enumerate(rows)
    ]
    other = SdmHead.fit(model, words, named, id_column="key", keep_texts=False, **SETTINGS)
    assert other.config.id2label == {0: "bad", 1: "good"}
    assert set(other.support_texts) == {None}
    # names aside it is one head, whether texts are kept or not
    assert torch.equal(other.thresholds, head.thresholds)
    assert head.support_texts == [rows[int(key)]["text"] for key in other.support_ids]
    # the same call finds its work
    assert same(head, SdmHead.fit(model, words, data, work_dir=tmp_path / "work", **SETTINGS))
    # numbers that are asked for are those of the names
    asked = SdmHead.fit(model, words, named, id2label={0: "good", 1: "bad"}, **SETTINGS)
    assert [asked.label_name(int(one)) for one in asked.support_labels] == [
        named[int(key)]["label"] for key in asked.support_ids
    ]
    for label, match in (("mild", "'mild', which is none of id2label's"), (1, "names and 1")):
        with pytest.raises(ValueError, match=match):
            SdmHead.fit(
                model,
                words,
                [*named, {"text": "w1", "label": label}],
                id2label={0: "good", 1: "bad"},
                **SETTINGS,
            )
    for wrong in ({"label_column": "target"}, {"id_column": "key"}):
        with pytest.raises(ValueError, match="is no column of train_dataset"):
            SdmHead.fit(model, words, data, **wrong, **SETTINGS)


def test_equal_texts_count_once_whatever_their_padding():
    torch.manual_seed(3)
    model, rows, words = build("bert"), texts(120), tokenizer()
    # equal to the tokenizer
    words.backend_tokenizer.normalizer = normalizers.Lowercase()
    twice = [*rows, *({**row, "text": f"{row['text'].upper()} "} for row in reversed(rows))]
    with pytest.warns(UserWarning, match="120 of 240 rows"):
        SdmHead.fit(model, words, twice, feature_batch_size=7, **SETTINGS)


@may_be_empty
def test_long_rows_that_begin_and_end_alike_are_not_one():
    # torch prints both as the same numbers around dots
    torch.manual_seed(3)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaModel(LlamaConfig(vocab_size=97, intermediate_size=8, **sizes))
    ids = torch.randint(3, 97, (20, 1100))
    ids[:, :3], ids[:, -3:] = 5, 6
    rows = {"input_ids": ids.tolist(), "label": [row % 2 for row in range(20)]}
    data = datasets.Dataset.from_dict(rows).with_format("torch")
    found = SdmHead.fit(model, None, data, **SETTINGS | {"epochs": 1})
    assert found.report["distinct_rows"] == 20


@may_be_empty
def test_the_pipeline_cuts_as_the_fit_did():
    long = [{**row, "text": f"{row['text']} w1 w2 w3 w4 w5 w6 w7"} for row in texts(120)]
    words = tokenizer()
    body = build("bert")
    found = SdmHead.fit(body, words, long, max_length=8, **SETTINGS)
    pipe = pipeline(
        TASK,
        model=SdmForSequenceClassification(body, found),
        tokenizer=words,
        device="cpu",
    )
    assert pipe(long[0]["text"]) == pipe(long[0]["text"], max_length=8)
    # a config says it too
    config = SdmConfig(layers=(0, -1), pooling="mean", max_length=8)
    again = SdmHead.fit(body, words, long, config=config, **SETTINGS).config
    assert (again.layers, again.pooling, again.max_length) == ((0, -1), "mean", 8)
    assert again.num_features == 48
    # the model takes 40, and the tokenizer does not know
    pipe = pipeline(TASK, model=verified("bert"), tokenizer=words, device="cpu")
    assert pipe("w1 " * 100) == pipe("w1 " * 38)
