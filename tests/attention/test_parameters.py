"""Methods and parameters: what is accepted changes the model, what is refused changes nothing."""

import copy
import math
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import hf_softext
from hf_softext.attention._base import OBSERVERS
from hf_softext.catalog import find
from tests.cases import NAMES, Case
from tests.models import MODELS, Model, model, served

LLAMA, CLIP = model("llama"), model("clip")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


def named(row: Any) -> str:
    return row.name


def state(built: Any) -> list[dict[str, Any]]:
    """Everything that a config says about attention, for each config of the model."""
    parts = {
        id(module.config): module.config for module in built.modules() if hasattr(module, "config")
    }
    return [
        {
            key: copy.deepcopy(value)
            for key, value in vars(part).items()
            if "att" in key or key == "softext"
        }
        for part in parts.values()
    ]


# apply_attention


@pytest.mark.parametrize(("row", "case"), served(MODELS))
def test_parameters_reach_the_whole_model(row: Model, case: Case) -> None:
    inputs = row.inputs("left")
    plain = row.run(row.build(case.name), inputs)
    built = row.build()
    assert hf_softext.apply_attention(built, case.name, **case.other) is built
    changed = row.run(built, inputs)
    config = hf_softext.apply_attention(row.config(), case.name, **case.other)
    fresh = row.build()
    from_config = type(fresh)._from_config(config).eval()
    from_config.load_state_dict(fresh.state_dict())
    for a, b, c in zip(plain, changed, row.run(from_config, inputs), strict=True):
        assert (a - b).abs().max() > 1e-3
        assert torch.equal(b, c)


def test_parameters_can_be_changed_and_reset() -> None:
    built = hf_softext.apply_attention(LLAMA.build(), "softplus_reweighted", power=3, scale=2.0)
    first = LLAMA.run(built, LLAMA.inputs())[0]
    hf_softext.apply_attention(built, "softplus_reweighted", power=5)
    assert built.config.softext["power"] == 5
    assert "scale" not in built.config.softext
    assert not torch.equal(LLAMA.run(built, LLAMA.inputs())[0], first)
    hf_softext.apply_attention(built, "softplus_reweighted", power=3, scale=2.0)
    assert torch.equal(LLAMA.run(built, LLAMA.inputs())[0], first)


def test_parameters_written_by_hand() -> None:
    config = LLAMA.config()
    config.softext = {"power": 3}
    built = LLAMA.build()
    by_hand = hf.LlamaForCausalLM._from_config(
        config, attn_implementation="softplus_reweighted"
    ).eval()
    by_hand.load_state_dict(built.state_dict())
    hf_softext.apply_attention(built, "softplus_reweighted", power=3)
    assert torch.equal(*(LLAMA.run(x, LLAMA.inputs())[0] for x in (built, by_hand)))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("softplus_reweigthed", {}, "Did you mean 'softplus_reweighted'"),
        ("softmax1", {}, "Unknown attention method 'softmax1'"),
        ("softplus_reweighted", {"powr": 3}, "no parameter 'powr'. Did you mean 'power'"),
        ("softplus", {"power": 3}, "'softplus' has no parameter 'power'"),
        (
            "softplus_reweighted",
            {"power": 0.5},
            "power=0.5 is not allowed: a number from 1 up to 1000",
        ),
        ("softplus_reweighted", {"power": 1001}, "power=1001"),
        ("softplus_reweighted", {"power": True}, "power=True"),
        ("softplus_reweighted", {"power": "3"}, "power='3'"),
        ("softplus_reweighted", {"power": None}, "power=None"),
        ("softplus_reweighted", {"power": math.nan}, "power=nan"),
        ("softplus_reweighted", {"shift": -0.1}, "shift=-0.1"),
        ("softplus_reweighted", {"shift": math.inf}, "shift=inf"),
        (
            "softplus_reweighted",
            {"free_rows": 2.5},
            "free_rows=2.5 is not allowed: a whole number from 0",
        ),
        ("softplus_reweighted", {"free_rows": -1}, "free_rows=-1"),
        ("softplus_reweighted", {"degenerate": "lssa"}, "one of 'softplus', 'zero'"),
        ("softplus_reweighted", {"degenerate": ["zero"]}, "degenerate="),
        ("softplus", {"scale": 0}, "scale=0 is not allowed: a number above 0"),
        ("stablemax", {"scale": -1.0}, "scale=-1.0"),
        ("stablemax", {"scale": False}, "scale=False"),
    ],
)
def test_refused_and_nothing_changed(name: str, parameters: dict[str, Any], message: str) -> None:
    built = hf_softext.apply_attention(CLIP.build(), "stablemax", scale=0.7)
    before = state(built)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared literally below
        hf_softext.apply_attention(built, name, **parameters)
    assert message in str(raised.value)
    assert state(built) == before


def test_head_dim_1_is_refused_before_anything_changes() -> None:
    built = hf.BertModel(hf.BertConfig(**SMALL | {"num_attention_heads": 32}))
    before = state(built)
    with pytest.raises(ValueError, match="head dim 1"):
        hf_softext.apply_attention(built, "softplus")
    assert state(built) == before
    hf_softext.apply_attention(built, "softplus", scale=1.0)
    hf_softext.apply_attention(built, "stablemax")


@pytest.mark.parametrize("target", [nn.Linear(2, 2), {"a": 1}, None])
def test_not_a_model(target: Any) -> None:
    with pytest.raises(ValueError, match="must be a transformers model or config"):
        hf_softext.apply_attention(target, "softplus")


# config.softext


def with_block(block: Any, name: str = "softplus") -> Any:
    built = LLAMA.build(name)
    built.config.softext = block
    return built


@pytest.mark.parametrize("block", ["softplus", 3, ["attention"], True])
def test_block_that_is_no_dict(block: Any) -> None:
    with pytest.raises(ValueError, match=r"config\.softext must be a dict"):
        LLAMA.run(with_block(block), LLAMA.inputs())


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"attention": "softpluss"}, "Did you mean 'softplus'"),
        ({"attention": "softplus", "scal": 1.0}, "Did you mean 'scale'"),
        ({"attention": "softplus", "scale": -1.0}, "scale=-1.0"),
        ({"attention": "softplus_reweighted", "power": 0}, "power=0"),
        ({"attention": ["softplus"]}, "softplus"),
    ],
)
def test_bad_block_is_an_error_at_the_forward(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared literally below
        LLAMA.run(with_block(block), LLAMA.inputs())
    assert message in str(raised.value)


def test_block_of_another_method_warns_once_and_is_not_used() -> None:
    built = with_block({"attention": "softplus_reweighted", "power": 3})
    with pytest.warns(
        UserWarning, match="parameters for 'softplus_reweighted', but 'softplus' runs"
    ) as caught:
        first, _ = (LLAMA.run(built, LLAMA.inputs())[0] for _ in range(2))
    assert len(caught) == 1
    assert torch.equal(first, LLAMA.run(LLAMA.build("softplus"), LLAMA.inputs())[0])


def test_block_of_another_method_at_its_defaults_is_silent() -> None:
    LLAMA.run(with_block({"attention": "softplus_reweighted", "power": 15.0}), LLAMA.inputs())


# verify_attention


@pytest.mark.parametrize(("row", "case"), served(MODELS))
def test_verify_counts_every_attention_module(row: Model, case: Case) -> None:
    built = row.build(case.name).train()
    hooks = sum(len(module._forward_pre_hooks) for module in built.modules())
    for inputs in (None, row.inputs()):
        report = hf_softext.verify_attention(built, inputs)
        assert report.attention == case.name
        # two layers, twice for two towers or two stages, and cross-attention in a decoder
        assert len(report.reached) == {"seq2seq": 6, "two towers": 4}.get(
            row.kind, 4 if "swin" in row.name else 2
        )
        assert report.bypassed == []
    assert built.training
    assert sum(len(module._forward_pre_hooks) for module in built.modules()) == hooks
    assert OBSERVERS == []


def test_verify_restores_the_model_after_an_error() -> None:
    built = LLAMA.build("softplus").train()
    built.model.layers[0].eval()
    with pytest.raises(IndexError):
        hf_softext.verify_attention(built, {"input_ids": torch.full((1, 3), 1000)})
    # mode by module: a frozen part stays frozen
    assert built.training
    assert not built.model.layers[0].training
    assert not any(module._forward_pre_hooks for module in built.modules())
    assert OBSERVERS == []


def test_verify_names_what_is_bypassed() -> None:
    built = LLAMA.build("softplus")
    own = copy.deepcopy(built.config)
    own._attn_implementation = "sdpa"
    built.model.layers[1].self_attn.config = own
    report = hf_softext.verify_attention(built)
    assert report.reached == ["model.layers.0.self_attn"]
    assert report.bypassed == ["model.layers.1.self_attn"]
    assert (
        str(report)
        == "softplus: 1 of 2 attention modules reached; bypassed: model.layers.1.self_attn"
    )


def test_verify_a_model_without_our_attention() -> None:
    with pytest.raises(ValueError, match="runs attn_implementation='sdpa'"):
        hf_softext.verify_attention(LLAMA.build())


IGNORE = [
    ("MPNetModel", lambda: hf.MPNetConfig(**SMALL, intermediate_size=48)),
    ("DebertaV2Model", lambda: hf.DebertaV2Config(**SMALL, intermediate_size=48)),
    (
        "BloomForCausalLM",
        lambda: hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50),
    ),
]


@pytest.mark.parametrize(
    ("class_name", "config"), IGNORE, ids=lambda x: x if isinstance(x, str) else ""
)
def test_model_that_ignores_the_registry(class_name: str, config: Any) -> None:
    model_class = getattr(hf, class_name)
    built = model_class(config())
    before = state(built)
    with pytest.raises(ValueError, match=f"{class_name} does not look its attention up"):
        hf_softext.apply_attention(built, "softplus")
    assert state(built) == before
    # transformers accepts the name at construction without a word
    accepted = model_class._from_config(config(), attn_implementation="softplus")
    with pytest.raises(
        ValueError, match=f"{class_name} accepts .* and ignores it: 2 attention modules ran"
    ):
        hf_softext.verify_attention(accepted)
    # nor does a second request for the same name make it true
    with pytest.raises(ValueError, match=f"{class_name} does not look its attention up"):
        hf_softext.apply_attention(accepted, "softplus", scale=2.0)


def test_every_catalogue_name_is_registered() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    hf_softext.register()
    assert hf_softext.register() == NAMES
    for name in NAMES:
        assert AttentionInterface._global_mapping[name] == find(name).load().forward
        assert name in AttentionMaskInterface._global_mapping


def test_parts_that_keep_their_own_attention_are_named() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    sizes["intermediate_size"] = 16
    encoder = hf.DebertaModel(hf.DebertaConfig(**sizes))
    decoder = hf.BertLMHeadModel(
        hf.BertConfig(**sizes, is_decoder=True, add_cross_attention=True, pad_token_id=0)
    )
    both = hf.EncoderDecoderModel(encoder=encoder, decoder=decoder)
    with pytest.warns(UserWarning, match="DebertaModel inside EncoderDecoderModel keep"):
        hf_softext.apply_attention(both, "softplus")
    assert decoder.config._attn_implementation == "softplus"
