"""Real models: nothing on the way to a method is lost, whatever the padding, cache or call."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache

from hf_softext.attention._common import AttentionMethod
from hf_softext.attention.parameters import Number
from hf_softext.functional import masked_softmax
from hf_softext.registration import explicit_mask
from tests.cases import CASES, NAMES, Case
from tests.models import DECODERS, LENGTH, MODELS, PAD, Model, model, refused, served

# left padding moves absolute positions that cannot be given
PADDED = [
    pytest.param(row, case, padding, id=f"{row.name}-{case.name}-{padding}")
    for row, case in (pair.values for pair in served(MODELS))
    for padding in ("left", "right")
    if row.kind != "image" and not (row.positions == "fixed" and padding == "left")
]


def named(row: Any) -> str:
    return row.name


@pytest.fixture
def softmax_probe() -> Iterator[str]:
    """Softmax behind the package's adapter and mask function, under a name of its own."""
    method = AttentionMethod(
        "softmax_probe",
        masked_softmax,
        cosine=False,
        parameters={"scale": Number(None, 0, 1e4, above_low=True)},
    )
    AttentionInterface.register(method.name, method.forward)
    AttentionMaskInterface.register(method.name, explicit_mask)
    yield method.name
    # transformers has no unregister
    AttentionInterface._global_mapping.pop(method.name)
    AttentionMaskInterface._global_mapping.pop(method.name)


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("row", MODELS, ids=named)
def test_softmax_through_the_adapter_is_the_model(
    row: Model, padding: str | None, softmax_probe: str
) -> None:
    inputs = row.inputs(padding)
    expected = row.run(row.build(row.softmax), inputs)
    torch.testing.assert_close(
        row.run(row.build(softmax_probe), inputs), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("row", "case"), served(MODELS))
def test_method_changes_the_model(row: Model, case: Case) -> None:
    softmax, ours = (
        row.run(row.build(attention), row.inputs()) for attention in (row.softmax, case.name)
    )
    for plain, changed in zip(softmax, ours, strict=True):
        assert (plain - changed).abs().max() > 1e-2
        assert changed.isfinite().all()


@pytest.mark.parametrize(("row", "case", "padding"), PADDED)
def test_padded_row_equals_the_row_alone(row: Model, case: Case, padding: str) -> None:
    built = row.build(case.name).double()
    padded = widen(row.inputs(padding))
    real = slice(PAD, LENGTH) if padding == "left" else slice(0, LENGTH - PAD)
    both = row.run(built, padded)
    for i, tokens in enumerate((real, slice(0, LENGTH))):
        alone = {
            key: tensor[i : i + 1, tokens] if tensor.shape[-1] == LENGTH else tensor[i : i + 1]
            for key, tensor in padded.items()
        }
        for got, want in zip(both, row.run(built, alone), strict=True):
            # the real tokens of both rows follow each other, unless that output has no padding
            mine = got[i : i + 1] if got.dim() == 3 else got.split([LENGTH - PAD, LENGTH])[i]
            torch.testing.assert_close(mine, want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("row", "case"), refused(MODELS))
def test_method_refuses_the_model(row: Model, case: Case) -> None:
    with pytest.raises(NotImplementedError, match=f"{case.name!r} cannot soft-cap"):
        row.run(row.build(case.name), row.inputs())


def widen(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: tensor.double() if tensor.is_floating_point() else tensor
        for key, tensor in inputs.items()
    }


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(("row", "case"), served(DECODERS))
def test_cached_decoding_equals_the_full_forward(row: Model, case: Case, cache: str) -> None:
    built = row.build(case.name).double()
    inputs = row.inputs("left")
    past = (
        DynamicCache(config=built.config)
        if cache == "dynamic"
        else StaticCache(built.config, LENGTH + 4)
    )
    # transformers renamed the argument
    known = inspect.signature(built.forward).parameters
    argument = "past_key_values" if "past_key_values" in known else "cache"
    steps = [slice(0, 4), *(slice(i, i + 1) for i in range(4, LENGTH))]
    logits = [
        built(
            input_ids=inputs["input_ids"][:, step],
            position_ids=inputs["position_ids"][:, step],
            attention_mask=inputs["attention_mask"][:, : step.stop],
            **{argument: past},
            use_cache=True,
        ).logits
        for step in steps
    ]
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        torch.cat(logits, 1)[real], row.run(built, inputs)[0], atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize(("row", "case"), served(DECODERS))
def test_packed_rows_equal_separate_rows(row: Model, case: Case) -> None:
    built = row.build(case.name).double()
    ids = row.inputs()["input_ids"][:1]
    first, second = ids[:, :4], ids[:, 4:]
    positions = torch.cat([torch.arange(4), torch.arange(LENGTH - 4)])[None]
    packed = built(input_ids=ids, position_ids=positions, use_cache=False).logits
    separate = [built(input_ids=x, use_cache=False).logits for x in (first, second)]
    torch.testing.assert_close(packed, torch.cat(separate, 1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("row", "case"), served([*DECODERS, model("t5")]))
def test_greedy_generation_does_not_depend_on_the_batch(row: Model, case: Case) -> None:
    built = row.build(case.name).double()
    inputs = {key: row.inputs("left")[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "output_logits": True}
    together = built.generate(**inputs, **options, return_dict_in_generate=True)
    alone = built.generate(inputs["input_ids"][:1, PAD:], **options, return_dict_in_generate=True)
    for got, want in zip(together.logits, alone.logits, strict=True):
        torch.testing.assert_close(got[:1], want, atol=1e-6, rtol=1e-6)
    assert torch.equal(together.sequences[0, -5:], alone.sequences[0, -5:])


@pytest.mark.parametrize(
    "options", [{"do_sample": True}, {"num_beams": 3}], ids=["sampling", "beams"]
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", [model("llama"), model("t5")], ids=named)
def test_generation_with_and_without_cache_agree(
    row: Model, name: str, options: dict[str, Any]
) -> None:
    built = row.build(name).double()
    inputs = {key: row.inputs("left")[key] for key in ("input_ids", "attention_mask")}
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        runs.append(built.generate(**inputs, max_new_tokens=5, use_cache=use_cache, **options))
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", [model("llama"), model("t5"), model("bert")], ids=named)
def test_gradient_checkpointing_keeps_the_gradients(row: Model, name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        built = row.build(name).double().train()
        if checkpointing:
            # the older name warns where the newer one exists
            old = built.gradient_checkpointing_enable
            getattr(built, "activation_checkpointing_enable", old)({"use_reentrant": False})
        torch.manual_seed(4)
        sum(
            x.square().sum() for x in row.run(built, row.inputs("left"), use_cache=False)
        ).backward()
        gradients.append({key: p.grad for key, p in built.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])
    assert all(gradient.isfinite().all() for gradient in gradients[0].values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_while_attentions_are_recorded(name: str, reentrant: bool) -> None:
    # this model does not pass `output_attentions` down, and nobody records in the second pass
    row, gradients = model("gpt2"), []
    for checkpointing in (False, True):
        built = row.build(name).double().train()
        assert built.config.attn_pdrop > 0
        if checkpointing:
            old = built.gradient_checkpointing_enable
            enable = getattr(built, "activation_checkpointing_enable", old)
            enable({"use_reentrant": reentrant})
        torch.manual_seed(4)
        output = built(**row.inputs("left"), use_cache=False, output_attentions=True)
        assert all(weights.shape[-2:] == (LENGTH, LENGTH) for weights in output.attentions)
        output.logits.square().sum().backward()
        gradients.append({key: p.grad for key, p in built.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("row", [model("llama"), model("bert")], ids=named)
def test_compiles_in_one_graph(row: Model, name: str) -> None:
    inputs = row.inputs("left") | ({"use_cache": False} if row.kind == "decoder" else {})
    built = row.build(name)
    compiled = row.run(torch.compile(built, fullgraph=True, backend="eager"), inputs)
    torch._dynamo.reset()
    torch.testing.assert_close(compiled, row.run(row.build(name), inputs))
    # a model that only ever ran compiled says the same when it is saved
    assert built.config.to_dict()["attn_implementation"] == name


@pytest.mark.parametrize("case", CASES, ids=named)
def test_attentions_are_the_weights(case: Case) -> None:
    row = model("llama")
    inputs = row.inputs("left")
    attentions = row.build(case.name)(**inputs, output_attentions=True).attentions
    assert len(attentions) == 2
    sums = inputs["attention_mask"][:, None, :].expand(-1, 4, -1).float()
    for weights in attentions:
        assert weights.shape == (2, 4, LENGTH, LENGTH)
        assert (weights >= 0).all()
        assert (weights.triu(1) == 0).all()
        # a padded query sees nothing, so that its row is 0
        if case.normalized:
            torch.testing.assert_close(weights.sum(-1), sums)
        else:
            assert ((weights.sum(-1) > 0) == (sums > 0)).all()
            assert (weights <= 1).all()
