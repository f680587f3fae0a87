"""Adapters on disk: what comes back, what does not and says so, and what a bad folder leaves."""

import json
from functools import partial

import pytest
import torch
import transformers as hf
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from hf_softext.adapters.snnk.config import SnnkConfig
from tests.adapters.models import QUIET, classifier, logits, randomize, row

# the newest transformers asks for a peft that is not out everywhere, for the sake of MoE
pytestmark = [QUIET, pytest.mark.usefixtures("any_peft")]
WEIGHTS = "adapter_model.safetensors"
saving = pytest.mark.parametrize("save_projection", [True, False])


@pytest.fixture
def any_peft(monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)


def trained(**given):
    return randomize(get_peft_model(classifier(), SnnkConfig(num_features=4, **given))).eval()


def shape(model):
    return [name for name, _ in model.named_modules()]


@saving
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("form", [{}, {"kernel": "sin", "placement": "parallel", "down_sample": 3}])
def test_an_adapter_comes_back(save_projection, low_cpu_mem_usage, form, tmp_path):
    model = trained(save_projection=save_projection, **form)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / WEIGHTS)
    assert any("snnk_projection" in key for key in saved) == save_projection
    assert any("snnk_fingerprint" in key for key in saved) != save_projection
    assert all("default" not in key for key in saved)
    # other layers, another seed of torch, another name
    torch.manual_seed(5)
    again = PeftModel.from_pretrained(
        classifier(), tmp_path, "mine", low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(again), expected)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    # beside another
    model = get_peft_model(classifier(), SnnkConfig(num_features=8))
    model.load_adapter(tmp_path, "mine", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(model), logits(classifier()))
    model.set_adapter("mine")
    assert torch.equal(logits(model), expected)


def test_an_adapter_of_a_half_precision_base_serves_a_full_one(tmp_path):
    model = get_peft_model(classifier(torch.bfloat16), SnnkConfig(save_projection=False))
    randomize(model).save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(classifier(), tmp_path)
    for (name, ours), theirs in zip(
        again.base_model.named_buffers(), model.base_model.buffers(), strict=True
    ):
        if "snnk_" in name:
            assert torch.equal(ours, theirs)
    torch.testing.assert_close(logits(again), logits(model).float(), atol=0.1, rtol=0.1)


@saving
def test_the_classes_of_transformers_load_it(save_projection, tmp_path):
    classifier().save_pretrained(tmp_path / "base")

    def base():
        return hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")

    config = SnnkConfig(num_features=4, task_type="SEQ_CLS", save_projection=save_projection)
    model = randomize(get_peft_model(base(), config))
    model.save_pretrained(tmp_path / "adapter")
    expected = logits(model)
    auto = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(auto), expected)
    native = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(native), expected)


@saving
def test_the_adapters_of_transformers_own(save_projection, tmp_path):
    model = classifier()
    model.add_adapter(SnnkConfig(num_features=4, save_projection=save_projection), "first")
    assert torch.equal(logits(model), logits(classifier()))
    randomize(model)
    expected = logits(model)
    model.save_pretrained(tmp_path / "native")
    again = classifier()
    again.load_adapter(tmp_path / "native", "first")
    assert torch.equal(logits(again), expected)
    trainable = classifier()
    trainable.load_adapter(tmp_path / "native", "first", is_trainable=True)
    names = {name for name, p in trainable.named_parameters() if p.requires_grad}
    assert any("snnk_weight" in name for name in names)
    assert not any("projection" in name or "fingerprint" in name for name in names)
    with pytest.warns(UserWarning, match="multiple adapters"):
        again.add_adapter(SnnkConfig(num_features=2, kernel="linear"), "second")
    again.set_adapter("first")
    assert torch.equal(logits(again), expected)
    again.disable_adapters()
    assert torch.equal(logits(again), logits(classifier()))
    again.enable_adapters()
    again.delete_adapter("second")
    assert torch.equal(logits(again), expected)
    # peft reads what transformers wrote, and the other way round
    assert torch.equal(
        logits(PeftModel.from_pretrained(classifier(), tmp_path / "native")), expected
    )
    model = trained(save_projection=save_projection)
    model.save_pretrained(tmp_path / "peft")
    again = classifier()
    again.load_adapter(tmp_path / "peft")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize(
    "other", [{"projection_seed": 1}, {"orthogonal": False}], ids=lambda other: next(iter(other))
)
def test_another_projection_is_not_taken_for_its_own(native, low_cpu_mem_usage, other, tmp_path):
    model = trained(save_projection=False)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    base = classifier()
    load = base.load_adapter if native else partial(PeftModel.from_pretrained, base)
    with pytest.raises(ValueError, match=r"another projection.*projection_seed"):
        load(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


def test_a_projection_that_another_release_draws_otherwise(tmp_path, monkeypatch):
    trained(save_projection=False).save_pretrained(tmp_path / "drawn")
    model = trained()
    model.save_pretrained(tmp_path / "saved")
    expected = logits(model)
    from hf_softext.adapters.snnk import layer

    draw = layer.draw
    monkeypatch.setattr(layer, "draw", lambda *given: draw(*given) * 1.01)
    with pytest.raises(ValueError, match="releases of hf_softext and torch"):
        PeftModel.from_pretrained(classifier(), tmp_path / "drawn")
    # which is what saving it is for
    assert torch.equal(
        logits(PeftModel.from_pretrained(classifier(), tmp_path / "saved")), expected
    )


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"target_modules": ["query"]}, "6 of its tensors are not in the file"),
        ({"layers_to_transform": [0]}, "6 of its tensors have no place here"),
    ],
    ids=["missing", "left over"],
)
def test_an_adapter_of_another_model(other, message, low_cpu_mem_usage, tmp_path):
    trained().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(classifier(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _cut_short(path):
    path.write_bytes(path.read_bytes()[:40])


def _tensors(change):
    def damage(path):
        saved = {change(key): value for key, value in load_file(path).items()}
        save_file({key: value for key, value in saved.items() if key}, path)

    return damage


def _without_gate(key):
    return None if key.endswith("layer.0.output.dense.snnk_gate") else key


def _rows(path):
    save_file({key: t[:-1].contiguous() for key, t in load_file(path).items()}, path)


def _says(**other):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | other))


BAD = {
    "no weights": (WEIGHTS, lambda path: path.unlink(), f"no {WEIGHTS}"),
    "cut off": (WEIGHTS, _cut, "damaged or cut off"),
    "cut off in its header": (WEIGHTS, _cut_short, "damaged or cut off"),
    "empty": (WEIGHTS, lambda path: path.write_bytes(b""), "damaged or cut off"),
    "no tensors": (WEIGHTS, _tensors(lambda key: None), "holds no SNNK adapter"),
    "a gate short": (WEIGHTS, _tensors(_without_gate), "damaged, or"),
    "a changed letter": (WEIGHTS, _tensors(lambda key: key.replace("gate", "gape")), "damaged, or"),
    "a row short": (WEIGHTS, _rows, "damaged, or belongs to another"),
    "more features": ("adapter_config.json", _says(num_features=8), "damaged, or"),
    "another kernel": ("adapter_config.json", _says(kernel="cos"), "damaged, or"),
    "another form": ("adapter_config.json", _says(down_sample=3), "damaged, or"),
    "another way of saving": ("adapter_config.json", _says(save_projection=False), "damaged, or"),
    "no config": ("adapter_config.json", lambda path: path.unlink(), "adapter_config.json"),
    "half a config": ("adapter_config.json", _cut, "Expecting|Unterminated|delimiter"),
    "bad value": (
        "adapter_config.json",
        lambda path: path.write_text(path.read_text().replace('"relu"', '"rely"')),
        "kernel='rely'.*mean 'relu'",
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_folder_leaves_the_model_as_it_was(bad, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file, damage, message = bad
    trained().save_pretrained(tmp_path / "good")
    trained().save_pretrained(tmp_path / "bad")
    damage(tmp_path / "bad" / file)
    base = classifier()
    names = shape(base)
    with pytest.raises((ValueError, OSError), match=message):
        PeftModel.from_pretrained(base, tmp_path / "bad")
    assert shape(base) == names
    model = PeftModel.from_pretrained(base, tmp_path / "good")
    names, expected = shape(model), logits(model)
    with pytest.raises((ValueError, OSError), match=message):
        model.load_adapter(tmp_path / "bad", "other")
    assert shape(model) == names
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), expected)
    # and with the file in its place the same call works
    model.load_adapter(tmp_path / "good", "other")
    model.set_adapter("other")
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("kind", ["no weights", "cut off", "empty"])
def test_transformers_own_loader_leaves_what_the_model_computes(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    trained().save_pretrained(tmp_path / "good")
    trained().save_pretrained(tmp_path / "bad")
    file, damage, _ = BAD[kind]
    damage(tmp_path / "bad" / file)
    model = classifier()
    # it reads the weights after the adapter is in place
    with pytest.raises(Exception, match=r"adapter_model|[Hh]eader|incomplete|Incomplete"):
        model.load_adapter(tmp_path / "bad", "mine")
    assert torch.equal(logits(model), logits(classifier()))
    model.delete_adapter("mine")
    model.load_adapter(tmp_path / "good", "mine")
    reference = classifier()
    reference.load_adapter(tmp_path / "good", "mine")
    assert torch.equal(logits(model), logits(reference))


def test_a_saved_config_makes_a_new_adapter(tmp_path):
    SnnkConfig(num_features=6, target_modules=["query"]).save_pretrained(tmp_path / "config")
    trained().save_pretrained(tmp_path / "adapter")
    for folder in ("config", "adapter"):
        config = SnnkConfig.from_pretrained(str(tmp_path / folder))
        model = get_peft_model(classifier(), config)
        assert torch.equal(logits(model), logits(classifier()))
        # saving sets a field of the config, which is no reason to look at where it came from
        model.save_pretrained(tmp_path / "new")
        assert PeftModel.from_pretrained(classifier(), tmp_path / "new")


def test_the_readme_says_what_to_import(tmp_path):
    model = trained()
    for _ in range(2):
        model.save_pretrained(tmp_path)
        card = (tmp_path / "README.md").read_text()
        # after the metadata, before what peft writes
        assert card.startswith("---\n")
        assert card.count("import hf_softext") == 1
        head, _, body = card.partition("import hf_softext")
        assert head.count("\n---\n") == 1
        assert "- PEFT" in body
    assert ModelCard.load(tmp_path / "README.md").data.library_name == "peft"
    native = classifier()
    native.add_adapter(SnnkConfig(num_features=4))
    native.save_pretrained(tmp_path / "native")
    assert "import hf_softext" in (tmp_path / "native" / "README.md").read_text()


def test_a_decoder_that_is_quantized_or_tied_saves_only_its_adapter(tmp_path):
    model = randomize(get_peft_model(row("gpt2").build(), SnnkConfig(num_features=4)))
    model.save_pretrained(tmp_path)
    assert all("snnk_" in key for key in load_file(tmp_path / WEIGHTS))
