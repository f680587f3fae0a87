"""What lies in a checkpoint's folder, and what damage does to it."""

import json
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import hub

from hf_softext.quantization.baq.digests import checksums, verify
from tests.quantization.checkpoints import (
    MODELS,
    dense,
    load,
    logits,
    quantize,
    quantized_modules,
    rtn,
    saved,
)

WEIGHTS = "model.safetensors"
DAMAGED = r"damaged, cut short, .* Take a fresh copy"


@pytest.fixture
def checkpoint(tmp_path):
    return saved("llama", tmp_path)


def config_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def rewrite(folder, **changes):
    """Change entries of the quantization config; None removes one."""
    config = config_of(folder)
    block = config["quantization_config"] | changes
    config["quantization_config"] = {
        key: value for key, value in block.items() if value is not None
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def retensor(folder, change):
    """What a program does that knows nothing of checksums."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_a_byte_flipped_anywhere_in_the_file(tmp_path):
    """Every byte of the header, and one of every tensor."""
    tensors = {
        "a": torch.randn(3, 5),
        "b.planes": torch.randint(0, 255, (7, 3), dtype=torch.uint8),
        "c": torch.randint(0, 99, (9, 2), dtype=torch.int16),
        "d": torch.randn(4).bfloat16(),
        "empty": torch.empty(0, 4, dtype=torch.uint8),
        "scalar": torch.tensor(3.0),
    }
    expected = checksums(tensors)
    path = tmp_path / WEIGHTS
    save_file(tensors, path, metadata={"format": "pt"})
    verify([path], expected)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (1, 64):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with pytest.raises(ValueError, match=str(path)):
                verify([path], expected)
    for length in range(0, len(whole), 9):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=DAMAGED):
            verify([path], expected)


def test_a_flipped_byte_stops_loading(checkpoint):
    path = checkpoint / WEIGHTS
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    for name in (
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.mlp.up_proj.planes",
        "model.layers.1.self_attn.q_proj.levels",
        "model.layers.1.self_attn.q_proj.ranges",
        "model.layers.1.self_attn.q_proj.clip",
    ):
        place = start + header[name]["data_offsets"][1] - 1
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=f"'{name}' is not what was saved"):
            load("llama", checkpoint)
    path.write_bytes(whole)
    load("llama", checkpoint)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.99])
def test_a_file_cut_short(checkpoint, share):
    path = checkpoint / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=DAMAGED):
        load("llama", checkpoint)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.levels"])
def test_a_missing_tensor(checkpoint, name):
    retensor(checkpoint, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=r"62 tensors, but 63 were saved"):
        load("llama", checkpoint)


def test_a_tensor_under_another_name(checkpoint):
    def swap(tensors):
        one, other = (f"model.layers.{layer}.input_layernorm.weight" for layer in (0, 1))
        tensors[one] = tensors[one] + 1
        tensors[one], tensors[other] = tensors[other], tensors[one]

    retensor(checkpoint, swap)
    with pytest.raises(ValueError, match=r"layernorm\.weight' is not what was saved"):
        load("llama", checkpoint)


def test_planes_that_the_config_does_not_list(checkpoint):
    planes = config_of(checkpoint)["quantization_config"]["module_planes"]
    name = "model.layers.0.mlp.up_proj"
    for wrong in (
        planes | {name: planes[name] + 1},
        {key: value for key, value in planes.items() if key != name},
    ):
        rewrite(checkpoint, module_planes=wrong)
        with pytest.raises(ValueError, match=r"module_planes .* does not match its weights"):
            load("llama", checkpoint)
    rewrite(checkpoint, module_planes=planes | {"model.layers.9.mlp.up_proj": 4})
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM has no linear layer 'model\.layers\.9\.mlp"
    ):
        load("llama", checkpoint)
    rewrite(checkpoint, module_planes=planes | {"model.embed_tokens": 4})
    with pytest.raises(ValueError, match=r"no linear layer 'model\.embed_tokens'"):
        load("llama", checkpoint)
    rewrite(checkpoint, module_planes=None)
    with pytest.raises(ValueError, match="lists no module_planes"):
        load("llama", checkpoint)


def test_a_config_with_more_blocks_than_the_weights(checkpoint):
    config = config_of(checkpoint) | {"num_hidden_layers": 3}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no model\.layers\.2\..* asks for other blocks"):
        load("llama", checkpoint)


def test_a_format_of_the_future(checkpoint):
    rewrite(checkpoint, format_version=2)
    with pytest.raises(ValueError, match=r"format_version=2: this release .* reads"):
        load("llama", checkpoint)


def test_keys_of_the_future(checkpoint):
    expected = logits(load("llama", checkpoint))
    rewrite(checkpoint, kernel="fast", trust_remote_code=True, dataset="x")
    assert torch.equal(logits(load("llama", checkpoint)), expected)


def test_without_checksums(checkpoint):
    """Another program's copy loads with a warning; what does not fit together still shows."""
    expected = logits(load("llama", checkpoint))
    rewrite(checkpoint, checksums=None)
    with pytest.warns(UserWarning, match="has no checksums of .* cannot be checked"):
        assert torch.equal(logits(load("llama", checkpoint)), expected)
    whole = (checkpoint / WEIGHTS).read_bytes()
    layer = "model.layers.0.mlp.up_proj"

    def more_levels(tensors):
        tensors[f"{layer}.levels"][0] = 255 - tensors[f"{layer}.levels"][0]

    def not_finite(tensors):
        tensors[f"{layer}.ranges"][0, 0] = 0x7E00

    def missing(tensors):
        del tensors[f"{layer}.clip"]

    for change, message in (
        (more_levels, layer),
        (not_finite, layer),
        (missing, rf"the checkpoint has no {layer}\.clip"),
    ):
        retensor(checkpoint, change)
        with (
            pytest.warns(UserWarning, match="has no checksums"),
            pytest.raises(ValueError, match=message),
        ):
            load("llama", checkpoint)
        (checkpoint / WEIGHTS).write_bytes(whole)


def test_another_programs_copy_of_the_same_tensors(checkpoint):
    expected = logits(load("llama", checkpoint))
    save_file(load_file(checkpoint / WEIGHTS), checkpoint / WEIGHTS)
    assert torch.equal(logits(load("llama", checkpoint)), expected)


def test_files_of_two_checkpoints(tmp_path):
    for name, bits in (("one", 6), ("other", 7)):
        quantize("llama", tmp_path, rtn(bits=bits)).save_pretrained(
            tmp_path / name, max_shard_size="5kB"
        )
    shard = sorted((tmp_path / "other").glob("*.safetensors"))[-1]
    shutil.copy(shard, sorted((tmp_path / "one").glob("*.safetensors"))[-1])
    with pytest.raises(ValueError, match=r"of another checkpoint than the config|were saved"):
        load("llama", tmp_path / "one")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(checkpoint):
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load("llama", checkpoint)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "bert"])
def test_the_models_own_names_of_tensors(name, tmp_path):
    model = quantize(name, tmp_path)
    folder = tmp_path / "out"
    model.save_pretrained(folder, save_original_format=False)
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    assert torch.equal(logits(load(name, folder)), logits(model))


def test_the_first_lines_beside_a_checkpoint(checkpoint):
    text = (checkpoint / "README.md").read_text(encoding="utf-8")
    front, _, body = text.removeprefix("---\n").partition("---\n")
    assert "- hf_softext\n- baq\n" in front
    assert body.strip().splitlines()[:2] == [
        "```python",
        "import hf_softext  # without this line transformers loads random weights",
    ]
    code = body.partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code.replace('"quantized"', repr(str(checkpoint))), names)
    assert len(quantized_modules(names["model"])) == 14
    assert "| quantized, 14 modules | 15,360 | 11,5" in text
    assert "calibration: none" in text


def test_other_peoples_readme_stays(tmp_path):
    model = quantize("llama", tmp_path)
    readme = tmp_path / "out" / "README.md"
    readme.parent.mkdir()
    readme.write_text("mine", encoding="utf-8")
    model.save_pretrained(readme.parent)
    assert readme.read_text(encoding="utf-8") == "mine"
    readme.unlink()
    model.save_pretrained(readme.parent)
    ours = readme.read_text(encoding="utf-8")
    quantize("llama", tmp_path, rtn(bits=7)).save_pretrained(readme.parent)
    renewed = readme.read_text(encoding="utf-8")
    assert "is 7 bits" in renewed
    edited = renewed.replace("is 7 bits", "is seven bits")
    readme.write_text(edited, encoding="utf-8")
    model.save_pretrained(readme.parent)
    assert readme.read_text(encoding="utf-8") == edited
    assert "is 6 bits" in ours
    model.save_pretrained(tmp_path / "second", is_main_process=False)
    assert not (tmp_path / "second" / "README.md").exists()


def test_the_trainers_checkpoint(tmp_path, monkeypatch):
    # it asks for adapters, whose checkpoints are peft's
    monkeypatch.setattr(hf.trainer, "validate_quantization_for_training", lambda _: None)
    model = quantize("llama", tmp_path)
    hf.Trainer(model, hf.TrainingArguments(tmp_path / "run")).save_model()
    assert torch.equal(logits(load("llama", tmp_path / "run")), logits(model))
    assert (tmp_path / "run" / "README.md").exists()


class Hub:
    """Keeps what would be uploaded."""

    def __init__(self):
        self.files = {}

    def create_repo(self, repo_id, **_):
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self, operations, **_):
        for one in operations:
            with open(one.path_or_fileobj, "rb") as file:
                self.files[one.path_in_repo] = file.read()


@pytest.mark.parametrize("by_saving", [False, True])
@pytest.mark.parametrize("present", [None, "---\nlicense: mit\n---\n\nmine\n"])
def test_push_to_hub(tmp_path, monkeypatch, by_saving, present):
    server = Hub()

    def card(repo_id, **_):
        if present is None:
            raise hub.EntryNotFoundError("no card")
        return hub.ModelCard(present)

    for module in (hub, hf.modeling_utils):
        monkeypatch.setattr(module, "hf_api", lambda: server)
    monkeypatch.setattr(hub.ModelCard, "load", card)
    model = quantize("llama", tmp_path)
    if by_saving:
        model.save_pretrained(tmp_path / "name", push_to_hub=True)
    else:
        model.push_to_hub("someone/name")
    assert {"config.json", WEIGHTS, "README.md"} <= set(server.files)
    readme = server.files["README.md"].decode()
    assert ("import hf_softext" in readme) == (present is None)
    assert ("mine" in readme) == (present is not None)
    for name, content in server.files.items():
        (tmp_path / "fetched").mkdir(exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(content)
    assert torch.equal(logits(load("llama", tmp_path / "fetched")), logits(model))


def test_the_base_models_name_is_said_where_it_is_known(tmp_path):
    model = quantize("llama", tmp_path)
    model.config.name_or_path = model.name_or_path = "someone/llama"
    model.save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "base_model: someone/llama\nbase_model_relation: quantized\n---" in text
    # of a checkpoint that was loaded, the name is its own
    again = load("llama", tmp_path / "out")
    again.name_or_path = "someone/llama-baq"
    again.save_pretrained(tmp_path / "again")
    assert "base_model" not in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")


def test_saving_leaves_no_checksums_in_memory(tmp_path):
    model = quantize("llama", tmp_path)
    model.save_pretrained(tmp_path / "out")
    assert len(config_of(tmp_path / "out")["quantization_config"]["checksums"]) == 8 * 63
    assert model.config.quantization_config.checksums is None
    assert load("llama", tmp_path / "out").config.quantization_config.checksums is None
    assert MODELS["llama"][0] is type(model)
    assert dense("llama") is dense("llama")
