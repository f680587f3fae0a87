"""What peft does with adapters: several of them, one for each sample, in half precision."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_model_status, get_peft_model
from torch import nn
from torch._dynamo.testing import CompileCounter

from hf_softext.adapters.snnk.config import SnnkConfig
from hf_softext.adapters.snnk.layer import SnnkAdapterLinear
from tests.adapters.models import QUIET, classifier, logits, randomize, row

pytestmark = QUIET
TARGETS = ["output.dense"]


def two(**given):
    """A model with adapters "default" and "other", which is a parallel one on fewer layers."""
    model = get_peft_model(classifier(), SnnkConfig(num_features=4, **given))
    config = SnnkConfig(kernel="cos", placement="parallel", target_modules=["value"])
    model.add_adapter("other", config)
    for name in ("other", "default"):
        model.set_adapter(name)
        randomize(model)
    return model.eval()


def adapted(model):
    return [name for name, m in model.named_modules() if isinstance(m, SnnkAdapterLinear)]


def test_adapters_are_switched_and_switched_off():
    model = two()
    plain, first = logits(classifier()), logits(model)
    model.set_adapter("other")
    second = logits(model)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    for a, b in ((plain, first), (first, second), (both, first), (both, second), (both, plain)):
        assert (a - b).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), both)
    model.base_model.disable_adapter_layers()
    assert torch.equal(logits(model), plain)
    model.base_model.enable_adapter_layers()
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("other")
    assert torch.equal(logits(model), first)
    assert not any("other" in key for key in model.state_dict())
    status = get_model_status(model)
    assert (status.peft_types, status.available_adapters) == ({"default": "SNNK"}, ["default"])


def test_only_the_active_adapter_is_trained():
    model = get_peft_model(classifier(), SnnkConfig(num_features=4))
    model.add_adapter("other", SnnkConfig(num_features=2))

    def trained():
        return {name for name, p in model.named_parameters() if p.requires_grad}

    assert trained()
    assert all(name.endswith(".default") for name in trained())
    model.set_adapter("other")
    assert trained()
    assert all(name.endswith(".other") for name in trained())
    shapes = {p.shape for name, p in model.named_parameters() if "snnk_weight" in name}
    assert shapes == {(32, 4), (32, 2)}


def test_each_sample_has_its_adapter():
    model = two()
    ids = torch.arange(3, 48).view(5, 9)
    names = ["other", "default", "__base__", "default", "other"]
    with torch.no_grad():
        mixed = model(input_ids=ids, adapter_names=names).logits
        for name in ("default", "other", "__base__"):
            rows = [index for index, given in enumerate(names) if given == name]
            if name == "__base__":
                with model.disable_adapter():
                    alone = model(input_ids=ids).logits
            else:
                model.set_adapter(name)
                alone = model(input_ids=ids).logits
            torch.testing.assert_close(mixed[rows], alone[rows])
    # nothing of it stays
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_generate_with_an_adapter_for_each_sample(name, beams):
    case = row(name)
    model = get_peft_model(case.build(), SnnkConfig(num_features=4))
    model.add_adapter("other", SnnkConfig(num_features=2, kernel="linear"))
    for adapter in ("other", "default"):
        model.set_adapter(adapter)
        randomize(model)
    model.eval()
    ids = case.inputs()["input_ids"].repeat(2, 1)
    names = ["default", "other", "__base__", "default"]

    def generate(**given):
        return model.generate(
            input_ids=ids,
            max_new_tokens=5,
            min_new_tokens=5,
            num_beams=beams,
            attention_mask=torch.ones_like(ids),
            **given,
        )

    mixed = generate(adapter_names=names)
    for adapter in ("default", "other"):
        model.set_adapter(adapter)
        rows = [index for index, given in enumerate(names) if given == adapter]
        assert torch.equal(mixed[rows], generate()[rows])
    with model.disable_adapter():
        assert torch.equal(mixed[2], generate()[2])


def test_misuse_of_adapter_names():
    model = two(kernel="linear")
    ids = torch.arange(3, 21).view(2, 9)
    with pytest.raises(
        ValueError, match=r"non-existing adapter\(s\): third. Known: default, other"
    ):
        model(input_ids=ids, adapter_names=["default", "third"])
    with pytest.raises(ValueError, match="but got 3 and 2 respectively"):
        model(input_ids=ids, adapter_names=["default"] * 3)
    model.merge_adapter()
    with pytest.raises(ValueError, match="Merged: default"):
        model(input_ids=ids, adapter_names=["default", "other"])
    # of the layers that have the other adapter only
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    with pytest.raises(ValueError, match="training mode"):
        model.train()(input_ids=ids, adapter_names=["default", "other"])
    # with one name each there is nothing to say
    assert model.eval()(input_ids=ids, adapter_names=["other", "other"]).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, 4),
        ({"layers_to_transform": [1], "target_modules": TARGETS}, 2),
        ({"layers_to_transform": 0, "layers_pattern": "layer", "target_modules": TARGETS}, 2),
        ({"target_modules": r".*layer\.1.*(query|key)"}, 2),
        ({"target_modules": TARGETS, "exclude_modules": ["attention.output.dense"]}, 2),
        ({"target_modules": TARGETS, "exclude_modules": r".*layer\.0.*"}, 2),
        ({"target_modules": "all-linear", "task_type": "SEQ_CLS"}, 13),
        ({"target_modules": ["bert.pooler.dense"]}, 1),
    ],
    ids=str,
)
def test_which_modules(given, count):
    assert len(adapted(get_peft_model(classifier(), SnnkConfig(**given)))) == count


@pytest.mark.parametrize(
    ("model", "given", "error", "message"),
    [
        (classifier, {"target_modules": ["q_proj"]}, ValueError, "q_proj"),
        (classifier, {"target_modules": []}, ValueError, "[Nn]o .*modules"),
        (
            classifier,
            {"target_modules": ["query", "word_embeddings"]},
            TypeError,
            r"target_modules, bert.embeddings.word_embeddings: .*a Embedding.*torch.nn.Linear",
        ),
        (classifier, {"target_modules": ["query", "LayerNorm"]}, TypeError, "a LayerNorm"),
        (
            lambda: nn.TransformerEncoderLayer(8, 2),
            {"target_modules": ["linear1", "out_proj"]},
            TypeError,
            "self_attn.out_proj: .*MultiheadAttention",
        ),
        (lambda: nn.Sequential(nn.Linear(2, 2)), {}, ValueError, "specify `target_modules`"),
    ],
)
def test_wrong_targets_leave_the_model_as_it_was(model, given, error, message):
    base = model()
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(error, match=message):
        get_peft_model(base, SnnkConfig(**given))
    assert [name for name, _ in base.named_modules()] == names
    # with a second adapter, too
    targets = ["query"] if hasattr(base, "bert") else ["linear1"]
    if type(base) is nn.Sequential:
        targets = ["0"]
    wrapped = get_peft_model(base, SnnkConfig(target_modules=targets))
    names = [name for name, _ in wrapped.named_modules()]
    if given.get("target_modules"):
        with pytest.raises(error, match=message):
            wrapped.add_adapter("other", SnnkConfig(**given))
        assert [name for name, _ in wrapped.named_modules()] == names
        assert list(wrapped.peft_config) == ["default"]


def test_all_linear_says_what_it_cannot_take():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2)

    from transformers import PretrainedConfig, PreTrainedModel

    class Model(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.body = Encoder()
            self.post_init()

    base = Model(PretrainedConfig())
    with pytest.raises(TypeError, match=r"body.layer.self_attn.out_proj: .*MultiheadAttention"):
        get_peft_model(base, SnnkConfig(target_modules="all-linear"))
    assert not adapted(base)
    config = SnnkConfig(target_modules="all-linear", exclude_modules=["out_proj"])
    assert len(adapted(get_peft_model(base, config))) == 2


def test_other_tuners_on_the_same_model():
    model = get_peft_model(classifier(), SnnkConfig())
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("second", LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="compatible"):
        get_peft_model(classifier(), SnnkConfig(), mixed=True)
    with pytest.raises(AttributeError, match="add_weighted_adapter"):
        model.add_weighted_adapter(["default"], [1.0], "mean")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_base_in_half_precision(dtype, autocast):
    plain = logits(classifier(dtype))
    model = get_peft_model(classifier(dtype), SnnkConfig(), autocast_adapter_dtype=autocast)
    assert torch.equal(logits(model.eval()), plain)
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    assert trained == {torch.float32 if autocast else dtype}
    reference = get_peft_model(classifier(), SnnkConfig())
    for name in adapted(model):
        ours = model.get_submodule(name).snnk_projection["default"]
        theirs = reference.get_submodule(name).snnk_projection["default"]
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    randomize(model)
    assert logits(model).dtype == dtype
    assert not torch.equal(logits(model), plain)
    model.train()(input_ids=torch.arange(3, 12)[None], labels=torch.tensor([1])).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_projections_do_not_depend_on_the_order_or_the_name():
    first = get_peft_model(classifier(), SnnkConfig(target_modules=["query", "value"]))
    torch.manual_seed(9)
    second = get_peft_model(
        classifier(), SnnkConfig(target_modules=["value"]), adapter_name="other"
    )
    second.add_adapter("default", SnnkConfig(target_modules="all-linear"))
    for name in adapted(first):
        ours = first.get_submodule(name).snnk_projection["default"]
        assert torch.equal(ours, second.get_submodule(name).snnk_projection["default"])
        if name.endswith("value"):
            assert torch.equal(ours, second.get_submodule(name).snnk_projection["other"])
    projections = [first.get_submodule(name).snnk_projection["default"] for name in adapted(first)]
    assert all((a - b).abs().max() > 0.1 for a in projections for b in projections if a is not b)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(row("llama").build(), SnnkConfig(num_features=4))
        randomize(model).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        ids = torch.arange(3, 23)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][key], grads[1][key]) for key in grads[0])


@pytest.mark.parametrize("kernel", ["relu", "cos"])
def test_a_compiled_model_has_no_graph_break(kernel):
    model = randomize(get_peft_model(classifier(), SnnkConfig(num_features=4, kernel=kernel)))
    model.eval()
    ids = torch.arange(3, 30).view(3, 9)
    explained = torch._dynamo.explain(model)(input_ids=ids)
    assert explained.graph_break_count == 0, explained.break_reasons
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        torch.testing.assert_close(compiled(input_ids=ids).logits, logits(model))
    assert counter.frame_count == 1


def test_heads_are_trained_with_their_adapter(tmp_path):
    model = get_peft_model(classifier(), SnnkConfig(num_features=4, task_type="SEQ_CLS"))
    randomize(model).eval()
    assert any("classifier.modules_to_save" in name for name, _ in model.named_parameters())
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(classifier(), tmp_path)), expected)
    model.add_adapter("other", SnnkConfig(num_features=2, task_type="SEQ_CLS"))
    ids = torch.arange(3, 30).view(3, 9)
    with torch.no_grad():
        mixed = model(input_ids=ids, adapter_names=["other", "default", "__base__"]).logits
    torch.testing.assert_close(mixed[1], expected[1])
    with model.disable_adapter():
        plain = logits(model)
    torch.testing.assert_close(mixed[2], plain[2])
    assert torch.equal(plain, logits(classifier()))
