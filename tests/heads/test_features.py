"""Features: what they are, whatever the padding, the kind of data or the model; and their cache."""

import json

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_softext import BaqConfig, BaqLinear, apply_attention
from hf_softext.heads import features
from hf_softext.heads.features import (
    POOLINGS,
    backbone,
    backbone_fingerprint,
    check_backbone,
    default_pooling,
    extract_features,
    pooled_features,
)
from hf_softext.quantization.baq.calibrate import quantize_model
from tests.heads.tiny import ENCODERS, MODELS, WORDS, build, tokenizer

ONE = datasets.Dataset.from_dict({"text": ["w1"]})
LENGTHS = (5, 9, 3, 12, 1, 7, 9)


def texts() -> list[str]:
    draw = torch.Generator().manual_seed(1)
    return [
        " ".join(WORDS[i] for i in torch.randint(90, (length,), generator=draw))
        for length in LENGTHS
    ]


def reference(model, rows, pooling, layers):
    """One row after the other, without padding, from the states that the model itself returns."""
    body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    found = []
    for ids in rows:
        output = body(input_ids=torch.tensor([ids]), output_hidden_states=True)
        parts = []
        for layer in layers:
            states = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
            parts += [
                {"cls": states[0, 0], "last": states[0, -1], "mean": states[0].mean(0)}[part]
                for part in pooling.split("_")
            ]
        found.append(torch.cat(parts))
    return torch.stack(found)


@pytest.mark.parametrize("name", MODELS)
def test_features_do_not_depend_on_padding_or_batch(name):
    model, words = build(name), tokenizer()
    rows = words(texts())["input_ids"]
    for pooling in POOLINGS:
        found = extract_features(
            model, words, texts(), pooling=pooling, layers=(1, -1, 0), batch_size=3, progress=False
        )
        with torch.no_grad():
            expected = reference(model, rows, pooling, (1, -1, 0))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert default_pooling(model) == ("cls_mean" if name in ENCODERS else "last_mean")
    for side in ("left", "right"):
        words.padding_side = side
        batch = words(texts(), padding=True, return_tensors="pt") | {"labels": torch.zeros(7)}
        with torch.no_grad():
            padded = pooled_features(model, batch, pooling, (1, -1, 0))
        torch.testing.assert_close(padded, expected, rtol=1e-4, atol=1e-4)
    half = model.to(torch.bfloat16)
    assert default_pooling(half) == ("cls_mean" if name in ENCODERS else "last_mean")
    rounded = extract_features(half, words, texts(), pooling="mean", progress=False)
    assert rounded.dtype == torch.float32
    with torch.no_grad():
        expected = reference(half, rows, "mean", (-1,)).float()
    torch.testing.assert_close(rounded, expected, rtol=0.1, atol=0.1)


def test_gradients_flow_through_pooled_features():
    model = build("bert")
    embedded = torch.randn(2, 6, 24, requires_grad=True)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    inputs = {"inputs_embeds": embedded, "attention_mask": mask}
    (gradient,) = torch.autograd.grad(pooled_features(model, inputs, "cls_mean").sum(), embedded)
    assert (gradient.abs().sum(-1) > 0).equal(mask.bool())


def test_kinds_of_datasets_agree():
    model, words = build("roberta"), tokenizer()
    table = datasets.Dataset.from_dict({"text": texts(), "line": texts()[::-1]})
    encoded = table.map(lambda row: words(row["text"]))
    padded = [
        {"input_ids": [0] * 2 + row["input_ids"] + [0], "attention_mask": [0] * 2 + mask + [0]}
        for row in encoded
        for mask in [row["attention_mask"]]
    ]
    options = {"progress": False, "batch_size": 2}
    expected = extract_features(model, words, texts(), **options)
    assert expected.shape == (7, 48)
    for data in (table, [dict(row) for row in table], tuple(texts()), encoded, padded):
        assert torch.equal(extract_features(model, words, data, **options), expected)
    assert torch.equal(extract_features(model, None, encoded, **options), expected)
    mirrored = extract_features(model, words, table, text_column="line", **options)
    torch.testing.assert_close(mirrored, expected.flip(0))
    # masked padding needs no token of its own
    assert torch.equal(extract_features(model, tokenizer(pad=False), texts(), **options), expected)
    short = extract_features(model, words, texts(), max_length=4, **options)
    by_hand = words(texts(), truncation=True, max_length=4)["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(short, reference(model, by_hand, "cls_mean", (-1,)))


def test_long_texts_are_cut_to_what_the_model_takes():
    model, words = build("roberta"), tokenizer()
    # positions of RoBERTa begin behind the padding token's
    long = [" ".join(WORDS[:60]), "w1"]
    cut = words(long, truncation=True, max_length=39)["input_ids"]
    with torch.no_grad():
        expected = reference(model, cut, "mean", (-1,))
    found = extract_features(model, words, long, pooling="mean", progress=False)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="row 0 of the dataset has 62 tokens, and the model takes"):
        extract_features(model, None, [{"input_ids": words(long[0])["input_ids"]}], progress=False)


def test_modes_and_gradients_are_as_before():
    model, words = build("bert").train(), tokenizer()
    model.bert.embeddings.eval()
    before = [module.training for module in model.modules()]
    first = extract_features(model, words, texts(), progress=False)
    assert torch.equal(first, extract_features(model, words, texts(), progress=False))
    assert not first.requires_grad
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError, match="layers"):
        extract_features(model, words, texts(), layers=(9,), progress=False)
    assert [module.training for module in model.modules()] == before


def test_cache_is_read_resumed_and_kept_apart(tmp_path, monkeypatch):
    model, words = build("bert"), tokenizer()
    monkeypatch.setattr(features, "_SHARD", 1)
    calls = []
    forward = type(backbone(model)).forward

    def counted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    counted.__wrapped__ = forward
    monkeypatch.setattr(type(backbone(model)), "forward", counted)
    options = {"batch_size": 2, "progress": False, "pooling": "mean"}
    stop = 0
    expected = extract_features(model, words, texts(), **options)
    cached = {**options, "cache_dir": tmp_path / "cache"}

    calls, stop = [], 3
    with pytest.raises(KeyboardInterrupt):
        extract_features(model, words, texts(), **cached)
    calls, stop = [], 0
    assert torch.equal(extract_features(model, words, texts(), **cached), expected)
    assert len(calls) == 2
    calls = []
    assert torch.equal(extract_features(model, words, texts(), **cached), expected)
    assert calls == []
    (folder,) = (tmp_path / "cache").iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    damaged = sorted(folder.glob("*.safetensors"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-8])
    assert torch.equal(extract_features(model, words, texts(), **cached), expected)
    assert len(calls) == 1

    others = [{"max_length": 6}, {"layers": (1,)}, {"pooling": "cls"}]
    for one in others:
        found = extract_features(model, words, texts(), **(cached | one))
        assert torch.equal(found, extract_features(model, words, texts(), **(options | one)))
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
    moved = extract_features(model, words, texts(), **cached)
    assert torch.equal(moved, extract_features(model, words, texts(), **options))
    assert not torch.equal(moved, expected)
    other = extract_features(model, words, texts()[::-1], **cached)
    torch.testing.assert_close(other, moved.flip(0))
    assert len(list((tmp_path / "cache").iterdir())) == 1 + len(others) + 2


def test_fingerprint_knows_the_attention(tmp_path):
    model, words = build("llama"), tokenizer()
    options = {"cache_dir": tmp_path, "progress": False}
    first, softmax = backbone_fingerprint(model), extract_features(model, words, texts(), **options)
    model.set_attn_implementation("eager")
    check_backbone(model, first)
    apply_attention(model, "softplus_reweighted", power=3)
    with pytest.raises(ValueError, match="another attention"):
        check_backbone(model, first)
    second, softplus = (
        backbone_fingerprint(model),
        extract_features(model, words, texts(), **options),
    )
    apply_attention(model, "softplus_reweighted", power=5)
    with pytest.raises(ValueError, match="another digest"):
        check_backbone(model, second)
    other = extract_features(model, words, texts(), **options)
    assert not torch.allclose(softplus, softmax, atol=1e-3)
    assert not torch.allclose(softplus, other, atol=1e-3)


def test_fingerprint_is_of_the_backbone_alone():
    model = build("bert")
    first = backbone_fingerprint(model)
    assert json.loads(json.dumps(first)) == first
    assert (first["model_type"], first["hidden_size"]) == ("bert", 24)
    with torch.no_grad():
        model.classifier.weight.zero_()
    assert backbone_fingerprint(model) == first
    assert backbone_fingerprint(model.bert)["digest"] == first["digest"]
    check_backbone(model, first | {"name_or_path": "elsewhere", "revision": "other"})
    with torch.no_grad():
        # one number of many is enough
        model.bert.embeddings.word_embeddings.weight[50, 7] += 1e-3
    with pytest.raises(ValueError, match="fitted on a model, and the model given has another dige"):
        check_backbone(model, first)
    check_backbone(model.half().float(), backbone_fingerprint(model))
    with pytest.raises(ValueError, match="in the same precision"):
        check_backbone(model.bfloat16(), backbone_fingerprint(build("bert")))
    with torch.device("meta"), pytest.raises(ValueError, match="is not in memory"):
        backbone_fingerprint(MODELS["bert"]())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_and_quantized_models():
    words = tokenizer()
    plain = build("llama")
    expected = extract_features(plain, words, texts(), progress=False)
    bare = backbone_fingerprint(plain)["digest"]
    adapted = get_peft_model(plain, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    found = extract_features(adapted, words, texts(), progress=False)
    assert found.shape == expected.shape
    assert not torch.allclose(found, expected, atol=1e-2)
    with adapted.disable_adapter():
        # the same tensors, but not at work
        disabled = backbone_fingerprint(adapted)["digest"]
        torch.testing.assert_close(
            extract_features(adapted, words, texts(), progress=False), expected
        )
    assert len({backbone_fingerprint(adapted)["digest"], disabled, bare}) == 3
    quantized = build("llama")
    quantize_model(quantized, BaqConfig(bits=4, solver="rtn", allocation="uniform"))
    assert any(isinstance(module, BaqLinear) for module in backbone(quantized).modules())
    with torch.no_grad():
        expected = reference(quantized, words(texts())["input_ids"], "last_mean", (-1,))
    found = extract_features(quantized, words, texts(), batch_size=1, progress=False)
    torch.testing.assert_close(found, expected)
    # its kernel for few tokens rounds to bfloat16
    found = extract_features(quantized, words, texts(), progress=False)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.05)
    assert backbone_fingerprint(quantized)["digest"] != bare


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dataset": []}, ValueError, "dataset is empty"),
        ({"dataset": datasets.Dataset.from_dict({"text": []})}, ValueError, "dataset is empty"),
        ({"dataset": [{"line": "w1"}]}, ValueError, "text_column='text' is not a column.*line"),
        ({"dataset": "w1 w2"}, TypeError, "dataset of type str"),
        ({"dataset": [3]}, TypeError, "dataset holds int"),
        (
            {
                "dataset": datasets.DatasetDict(
                    {"train": datasets.Dataset.from_dict({"text": ["a"]})}
                )
            },
            TypeError,
            r"several splits \(train\)",
        ),
        ({"dataset": ["w1", None]}, ValueError, "row 1 of the dataset is no text: None"),
        ({"tokenizer": None}, ValueError, "tokenizer is missing"),
        ({"pooling": "max"}, ValueError, "pooling='max' must be one of cls, last"),
        (
            {"layers": (-1, 3)},
            ValueError,
            r"\(-1, 3\): 3 does not exist, BertModel has -3 to",
        ),
        ({"layers": ()}, ValueError, "layers is empty"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be"),
        ({"max_length": 0}, ValueError, "max_length=0 must be"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "model=Linear is no model"),
        (
            {"dataset": ["w1", "", "w2"], "tokenizer": tokenizer(frame=False)},
            ValueError,
            r"rows 1 \(1 in all\) have no tokens",
        ),
    ],
)
def test_mistakes_are_named(change, error, message):
    given = {"model": build("bert"), "tokenizer": tokenizer(), "dataset": texts()} | change
    with pytest.raises(error, match=message):
        extract_features(**given, progress=False)


def test_rows_that_are_not_finite_are_named():
    model = build("bert")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3 + 40] = torch.inf
    with pytest.raises(ValueError, match="features of rows 2, 5 hold inf or NaN"):
        extract_features(
            model, tokenizer(), ["w1", "w2", "w40", "w3", "w4 w4", "w1 w40"], progress=False
        )
