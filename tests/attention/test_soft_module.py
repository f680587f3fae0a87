"""SOFT's module against the authors' code, and the models that are converted to it."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_softext.attention.soft_convert import SoftVisionAttention, convert_to_soft
from hf_softext.attention.soft_module import SoftAttention, SoftKernel

VECTORS = load_file(Path(__file__).parents[1] / "golden" / "soft_kernel.safetensors")
# our name -> the authors'
NAMES = {
    "landmark_conv.weight": "Qlandmark_op.weight",
    "landmark_norm.weight": "Qnorm_act.0.weight",
    "landmark_norm.bias": "Qnorm_act.0.bias",
    "conv.weight": "conv.weight",
}
CLASSES = {
    "ViTForImageClassification": hf.ViTConfig,
    "DeiTForImageClassificationWithTeacher": hf.DeiTConfig,
    "Dinov2ForImageClassification": hf.Dinov2Config,
    "ViTModel": hf.ViTConfig,
    "Dinov2Model": hf.Dinov2Config,
}
every_class = pytest.mark.parametrize("name", CLASSES)


def built(name: str, image_size: Any = 20) -> Any:
    config = CLASSES[name](
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=image_size,
        patch_size=4,
    )
    return getattr(hf, name)(config).eval()


def stirred(model: Any) -> Any:
    """Every weight moved, so that none is where a constructor leaves it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(height: int = 20, width: int = 20) -> Tensor:
    return torch.randn(2, 3, height, width)


def test_kernel_equals_the_authors_code() -> None:
    kernel = SoftKernel(8, heads=2, ratio=2, conv_size=3)
    kernel.load_state_dict({ours: VECTORS[f"param.{theirs}"] for ours, theirs in NAMES.items()})
    query, value = (VECTORS[name].clone().requires_grad_() for name in ("Q", "V"))
    output = kernel(query, value, (4, 4))
    output.backward(VECTORS["grad_out"])
    tokens = query / 8**0.25
    torch.testing.assert_close(kernel._landmarks(tokens, (4, 4)), VECTORS["landmarks"])
    got = [output, query.grad, value.grad]
    expected = [VECTORS[name] for name in ("out", "grad_Q", "grad_V")]
    for name, parameter in kernel.named_parameters():
        got.append(parameter.grad)
        expected.append(VECTORS[f"grad.{NAMES[name]}"])
    assert len(got) == 7
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_module_is_its_parts(norm: bool) -> None:
    attention = SoftAttention(dim=12, heads=3, ratio=2, conv_size=3, norm=norm).double()
    hidden = torch.randn(2, 16, 12).double()
    query, value = (
        proj(hidden).view(2, 16, 3, 4).transpose(1, 2)
        for proj in (attention.q_proj, attention.v_proj)
    )
    out = attention.kernel(query, value, (4, 4)).transpose(1, 2).reshape(2, 16, 12)
    torch.testing.assert_close(attention(hidden), attention.o_proj(out))
    torch.testing.assert_close(attention(hidden, (4, 4)), attention(hidden))
    assert not torch.allclose(attention(hidden, (2, 8)), attention(hidden))
    # and a row does not depend on its batch
    torch.testing.assert_close(attention(hidden[:1]), attention(hidden)[:1])


def test_kernel_on_an_odd_grid_with_tokens_before_it() -> None:
    # what the edge cells lack counts as zeros: the same as a grid that is filled up with them
    kernel = SoftKernel(4, heads=2, ratio=2, conv_size=0).double()
    tokens = torch.randn(1, 2, 2 + 3 * 5, 4).double()
    filled = torch.zeros(1, 2, 4, 6, 4).double()
    filled[:, :, :3, :5] = tokens[:, :, 2:].unflatten(2, (3, 5))
    landmarks = kernel._landmarks(tokens[:, :, 2:], (3, 5))
    assert landmarks.shape == (1, 2, 6, 4)
    torch.testing.assert_close(landmarks, kernel._landmarks(filled.flatten(2, 3), (4, 6)))
    assert kernel(tokens, tokens, (3, 5)).shape == tokens.shape


def test_module_in_half_precision_and_under_autocast() -> None:
    attention = SoftAttention(dim=12, heads=3, ratio=2, conv_size=3)
    query, value = torch.randn(2, 3, 16, 4), torch.randn(2, 3, 16, 4)
    wide = attention.kernel(query.bfloat16().float(), value.bfloat16().float(), (4, 4))
    half = attention.kernel(query.bfloat16(), value.bfloat16(), (4, 4))
    assert torch.equal(half, wide.bfloat16())
    exact = attention.kernel(query, value, (4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention.kernel(query, value, (4, 4)), exact)
    hidden = torch.randn(2, 16, 12).bfloat16()
    assert attention.bfloat16()(hidden).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": 5}, "heads=5 does not divide dim=12"),
        ({"conv_size": 4}, "conv_size=4 is not allowed: an odd number"),
        ({"conv_size": -1}, "conv_size=-1"),
        ({"ratio": 0}, "ratio=0"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_module_refuses(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftAttention(**{"dim": 12, "heads": 3, "ratio": 2, "conv_size": 3} | given)


def test_module_refuses_a_grid_that_does_not_fit() -> None:
    attention = SoftAttention(dim=12, heads=3, ratio=2, conv_size=3)
    with pytest.raises(ValueError, match=r"15 tokens are no square: give grid"):
        attention(torch.randn(1, 15, 12))
    with pytest.raises(ValueError, match=r"grid=\(4, 4\) has more cells than the 15 tokens"):
        attention(torch.randn(1, 15, 12), (4, 4))


# convert_to_soft


@every_class
def test_conversion_keeps_the_projections(name: str) -> None:
    model = built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert convert_to_soft(model, ratio=3, conv_size=5, norm=False, iterations=7) is model
    after = model.state_dict()
    for key, value in before.items():
        if "k_proj" in key:
            assert key not in after
        else:
            assert torch.equal(after[key], value), key
    modules = [m for m in model.modules() if isinstance(m, SoftVisionAttention)]
    assert len(modules) == 2
    for module in modules:
        assert (module.kernel.ratio, module.kernel.norm, module.kernel.iterations) == (3, False, 7)
        assert module.kernel.conv.kernel_size == (5, 5)
        assert not module.training
    added = set(after) - set(before)
    assert len(added) == 2 * 4
    # trainable as a whole, where more than the class token is read
    model.base_model(images())[0].square().sum().backward()
    for key, parameter in model.named_parameters():
        if "kernel" in key or "_proj" in key:
            assert parameter.grad.isfinite().all()
            assert (parameter.grad != 0).any(), key


def test_first_landmarks_are_transformed_means() -> None:
    module = next(
        m
        for m in convert_to_soft(built("ViTModel"), conv_size=0).modules()
        if isinstance(m, SoftVisionAttention)
    )
    tokens = torch.randn(2, 4, 16, 8)
    cells = tokens.unflatten(2, (2, 2, 2, 2)).mean(dim=(3, 5)).flatten(2, 3)
    expected = nn.functional.gelu(nn.functional.layer_norm(cells, (8,)))
    torch.testing.assert_close(module.kernel._landmarks(tokens, (4, 4)), expected)
    assert module.kernel.conv is None


@every_class
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model_class = getattr(hf, name)
    model = stirred(convert_to_soft(built(name), ratio=2, norm=True))
    model.save_pretrained(tmp_path / "a")
    again = convert_to_soft(model_class).from_pretrained(tmp_path / "a")
    pixels = images()
    assert type(again) is model_class
    assert torch.equal(again(pixels)[0], model(pixels)[0])
    # once more, from what was loaded
    again.save_pretrained(tmp_path / "b")
    third = convert_to_soft(model_class).from_pretrained(tmp_path / "b")
    assert torch.equal(third(pixels)[0], model(pixels)[0])
    written = [json.loads((tmp_path / x / "config.json").read_text()) for x in "ab"]
    assert written[0] == written[1]
    numbers = {"ratio": 2, "conv_size": 3, "norm": True, "iterations": 20}
    assert written[0]["softext"] == {"convert_to_soft": numbers}
    assert written[0]["architectures"] == [name]
    assert torch.equal(pickle.loads(pickle.dumps(again))(pixels)[0], model(pixels)[0])


def test_loading_it_as_softmax_fails_loudly(tmp_path: Path) -> None:
    convert_to_soft(built("ViTForImageClassification")).save_pretrained(tmp_path)
    for loader in (hf.ViTForImageClassification, hf.AutoModelForImageClassification):
        with pytest.raises(ValueError, match="convert_to_soft"):
            loader.from_pretrained(tmp_path)


def test_loading_softmax_as_soft_fails_loudly(tmp_path: Path) -> None:
    built("ViTForImageClassification").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not saved from a converted model: load it with ViTFor"):
        convert_to_soft(hf.ViTForImageClassification).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="The checkpoint says what ratio, norm is"):
        convert_to_soft(hf.ViTForImageClassification, ratio=2, norm=False)
    with pytest.raises(ValueError, match="not AutoModelForImageClassification"):
        convert_to_soft(hf.AutoModelForImageClassification)


def test_trainer_checkpoint_of_a_converted_model(tmp_path: Path) -> None:
    model = convert_to_soft(built("ViTForImageClassification"))
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"pixel_values": images()[0], "labels": i} for i in (0, 1)]
    hf.Trainer(model, arguments, train_dataset=rows).train()
    again = convert_to_soft(hf.ViTForImageClassification).from_pretrained(tmp_path / "checkpoint-2")
    pixels = images()
    assert torch.equal(again(pixels).logits, model.eval()(pixels).logits)


def test_other_resolutions() -> None:
    model = convert_to_soft(built("ViTModel", image_size=[12, 20]))
    assert model(images(12, 20))[0].shape == (2, 16, 32)
    square = convert_to_soft(built("ViTModel"))
    assert square(images(28, 28), interpolate_pos_encoding=True)[0].shape == (2, 50, 32)
    attention = next(m for m in square.modules() if isinstance(m, SoftVisionAttention))
    with pytest.raises(ValueError, match=r"15 patches are no grid of \(5, 5\): pass"):
        attention(torch.randn(1, 16, 32))


@every_class
@pytest.mark.parametrize("size", [(8, 32), (8, 72), (32, 8), (16, 16), (9, 34)])
def test_grid_is_that_of_the_pixels(name: str, size: tuple[int, int]) -> None:
    # 16 patches of the model's own, of which the others have as many in another shape
    model = convert_to_soft(built(name, image_size=16))
    height, width = size
    seen = []
    for module in model.modules():
        if isinstance(module, SoftKernel):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    # dinov2 always interpolates
    given = {} if name.startswith("Dinov2") else {"interpolate_pos_encoding": True}
    model(pixel_values=images(height, width), **given)
    model(images(16, 16))
    assert seen == [(height // 4, width // 4)] * 2 + [(4, 4)] * 2


def test_checkpointing_recomputes_each_pass_with_its_grid() -> None:
    model = stirred(convert_to_soft(built("Dinov2Model", image_size=16))).train()
    pixels = images(8, 32), images(16, 16)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            # its name changed in transformers 5.23
            renamed = hasattr(model, "activation_checkpointing_enable")
            kind = "activation" if renamed else "gradient"
            getattr(model, f"{kind}_checkpointing_enable")()
        model.zero_grad()
        sum(model(x)[0].square().mean() for x in pixels).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*found)


def test_conversion_refuses() -> None:
    llama = hf.LlamaModel(
        hf.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=48,
            vocab_size=9,
        )
    )
    with pytest.raises(ValueError, match="takes vit, deit, dinov2 models, not 'llama'"):
        convert_to_soft(llama)
    with pytest.raises(ValueError, match="not 'Linear'"):
        convert_to_soft(nn.Linear(2, 2))
    model = convert_to_soft(built("ViTModel"))
    with pytest.raises(ValueError, match="it is converted already"):
        convert_to_soft(model)
    untouched = built("ViTModel")
    with pytest.raises(ValueError, match="conv_size=4"):
        convert_to_soft(untouched, conv_size=4)
    assert not any(isinstance(m, SoftVisionAttention) for m in untouched.modules())
    assert getattr(untouched.config, "softext", None) is None
    with pytest.raises(ValueError, match="attention_mask is not supported"):
        next(m for m in model.modules() if isinstance(m, SoftVisionAttention))(
            torch.randn(1, 26, 32), torch.ones(1, 1, 26, 26)
        )


def test_converted_model_compiles_in_one_graph() -> None:
    model, pixels = convert_to_soft(built("ViTModel")), images()
    compiled = torch.compile(model, fullgraph=True, backend="eager")(pixels)[0]
    torch._dynamo.reset()
    torch.testing.assert_close(compiled, model(pixels)[0])
