"""The closed form of a head, in one process and in two."""

import os
import subprocess
import sys

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from hf_softext.adapters.snnk.closed_form import collect, fit_closed_form
from hf_softext.adapters.snnk.head import SnnkHead
from hf_softext.functional.ridge import NormalEquations
from tests.adapters.closed_form_work import CASES, batches, fitted, model, rows


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def reference(z, labels, classes, ridge):
    """W and b by one dense solve on all rows at once, in float64."""
    z, y = z.double(), torch.nn.functional.one_hot(labels, classes).double()
    zc, yc = z - z.mean(0), y - y.mean(0)
    penalty = ridge * zc.square().sum() / z.shape[1] * torch.eye(z.shape[1], dtype=z.dtype)
    weight = torch.linalg.solve(zc.T @ zc + penalty, zc.T @ yc).T
    return weight, y.mean(0) - weight @ z.mean(0)


def test_a_head_of_a_transformer_is_the_dense_solution():
    bert = model()
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    bert.train()
    found = fit_closed_form(bert, batches(), ridge=0.01, progress=False)
    assert bert.training
    assert bert.bert.encoder.training
    bert.eval()
    data = rows()
    with torch.no_grad():
        hidden = bert.bert(torch.tensor(data["input_ids"])).pooler_output
        z = bert.classifier.features(hidden)
        labels = torch.tensor(data["labels"])
        weight, bias = reference(z, labels, 3, 0.01)
        close(bert.classifier.out.weight, weight)
        close(bert.classifier.out.bias, bias)
        errors = bert(torch.tensor(data["input_ids"])).logits
        errors = errors - torch.nn.functional.one_hot(labels, 3)
    assert found.rows == len(labels)
    assert found.mean_squared_error == pytest.approx(errors.square().mean().item(), rel=1e-9)
    changed = {n for n, value in bert.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"classifier.out.weight", "classifier.out.bias"}
    assert not [hook for module in bert.modules() for hook in module._forward_hooks]


def test_neither_batches_nor_their_order_matter():
    expected = fitted(batches(size=13))
    data = rows()
    for loader in (batches(size=1), batches(size=5), batches(size=5)[::-1]):
        close(fitted(loader), expected)
    assert len(data["labels"]) == 13


def test_the_models_own_head_and_others():
    # the plain head of the model, without random features
    own = model(head=None)
    fit_closed_form(own, batches(), progress=False)
    with torch.no_grad():
        z = own.bert(torch.tensor(rows()["input_ids"])).pooler_output
    close(own.classifier.weight, reference(z, torch.tensor(rows()["labels"]), 3, 1e-3)[0])
    # a head without bias, named by hand, behind which no config says how many classes there are
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2, bias=False)).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    y = torch.randn(30, 2, dtype=torch.float64)
    fit_closed_form(plain, [(x, y)], 0.5, relative=False, head=plain[2], progress=False)
    z = plain[:2](x).detach()
    close(z.T @ (z @ plain[2].weight.T - y) + 0.5 * plain[2].weight.T, torch.zeros(6, 2).double())


def test_tokens_of_which_some_do_not_count():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.BertConfig(**sizes, intermediate_size=16, vocab_size=40, num_labels=3)
    tagger = hf.BertForTokenClassification(config).eval()
    tokens = torch.randint(1, 40, (8, 6))
    labels = torch.randint(0, 3, (8, 6))
    labels[:, 4:] = -100
    found = fit_closed_form(tagger, [{"input_ids": tokens, "labels": labels}], progress=False)
    assert found.rows == 32
    with torch.no_grad():
        z = tagger.bert(tokens).last_hidden_state
    weight, _ = reference(z[:, :4].flatten(0, 1), labels[:, :4].flatten(), 3, 1e-3)
    close(tagger.classifier.weight, weight.float(), 1e-4)


def test_targets_of_a_regression_and_of_several_labels():
    one = nn.Sequential(nn.Linear(4, 1)).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]).double() + 3
    fit_closed_form(one, [(x, y)], 0.0, progress=False)
    close(one[0].weight, torch.tensor([[1.0, -2.0, 0.5, 0.0]]).double())
    close(one[0].bias, torch.tensor([3.0]).double())
    many = nn.Sequential(nn.Linear(4, 2)).double()
    hot = (x[:, :2] > 0).long()
    fit_closed_form(many, [(x, hot)], 0.0, progress=False)
    errors = many(x) - hot
    close(errors.sum(0), torch.zeros(2).double())
    close(x.T @ errors, torch.zeros(4, 2).double())


def test_several_ridges_from_one_pass():
    bert = model()
    sums, layer = collect(bert, batches(), progress=False)
    assert layer is bert.classifier.out
    for ridge in (1e-3, 1.0):
        weight, bias = sums.solve(ridge)
        again = torch.cat((weight, bias[:, None]), 1)
        close(fitted(batches(), ridge=ridge), again)


def test_two_processes_find_the_head_of_one(tmp_path):
    """Rows that fill up the last batch are counted once, whoever made the loader."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += ["2", "-m", "tests.adapters.closed_form_work", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    two = load_file(tmp_path / "sums.safetensors")
    sums, _ = collect(model(), batches(size=2), progress=False)
    assert len(CASES) == 6
    for name in CASES:
        assert two[f"{name}.rows"].item() == 13, name
        close(two[f"{name}.gram"], sums.gram)
        close(two[f"{name}.cross"], sums.cross)
        close(two[f"{name}.weight"], sums.solve()[0])
    # what one process alone could not read is told by the others
    assert two["told"].tolist() == [1, 1]


class Last(nn.Module):
    """Picks a position after its output layer."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 3)

    def forward(self, x):
        return self.score(x)[:, -1]


class Halved(nn.Linear):
    """Is a linear layer by its type only."""

    def forward(self, x):
        return super().forward(x) / 2


def test_an_output_layer_that_is_also_the_embedding():
    bert = hf.BertForMaskedLM(model().config)
    before = bert.get_input_embeddings().weight.clone()
    tokens = torch.arange(20).view(2, 10)
    with pytest.raises(ValueError, match=r"word_embeddings and cls\S+decoder have one weight"):
        fit_closed_form(bert, [{"input_ids": tokens, "labels": tokens}], progress=False)
    assert torch.equal(bert.get_input_embeddings().weight, before)


def test_a_language_model_is_fitted_to_the_token_after_each():
    config = hf.GPT2Config(
        **{"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 40},
        **{"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False},
    )
    gpt = hf.GPT2LMHeadModel(config).eval()
    tokens = torch.arange(20).view(2, 10)
    with pytest.raises(ValueError, match="its own loss shifts"):
        fit_closed_form(gpt, [{"input_ids": tokens, "labels": tokens}], progress=False)
    batch = {"input_ids": tokens, "after": tokens + 1}
    fit_closed_form(gpt, [batch], 1e-9, labels="after", progress=False)
    assert torch.equal(gpt(tokens).logits.argmax(-1), tokens + 1)


def test_a_perfect_fit_has_no_error_below_0():
    torch.manual_seed(0)
    x = torch.randn(4, 8, dtype=torch.float64)
    errors = []
    for _ in range(20):
        sums = NormalEquations(8, 3)
        sums.add(torch.randn_like(x), torch.eye(4)[:, :3])
        with pytest.warns(UserWarning, match="linearly dependent"):
            errors.append(sums.mean_squared_error(*sums.solve(0.0)))
    assert 0 <= min(errors) <= max(errors) < 1e-12


def test_mistakes():
    def fit(bert=None, loader=None, **given):
        fit_closed_form(bert or model(), loader or batches(), progress=False, **given)

    def changed(**columns):
        return [{**batch, **columns} for batch in batches(size=13)]

    with pytest.raises(ValueError, match="no batches"):
        fit_closed_form(model(), [], progress=False)
    with pytest.raises(ValueError, match="label 3 is none of the 3 classes"):
        fit(loader=changed(labels=torch.arange(13) % 4))
    with pytest.raises(ValueError, match="label -1 is none"):
        fit(loader=changed(labels=torch.arange(13) % 3 - 1))
    with pytest.raises(ValueError, match="every label is class 2"):
        fit(loader=changed(labels=torch.full((13,), 2)))
    with pytest.raises(ValueError, match="every label is -100"):
        fit(loader=changed(labels=torch.full((13,), -100)))
    with pytest.raises(ValueError, match="13 rows of features and 12 of labels"):
        fit(loader=changed(labels=torch.zeros(12, dtype=torch.long)))
    with pytest.raises(ValueError, match="do not go with features"):
        fit(loader=changed(labels=torch.zeros(13, 2)))
    with pytest.raises(ValueError, match=r"no 'labels', only input_ids"):
        fit(loader=[{"input_ids": torch.ones(2, 3, dtype=torch.long)}])
    with pytest.raises(TypeError, match="a batch is a Tensor"):
        fit(loader=[torch.ones(2, 3)])
    with pytest.raises(TypeError, match="labels are a list"):
        fit(loader=changed(labels=[0, 1] * 6))
    for ridge in (-1, True, "1", None, float("nan")):
        with pytest.raises(ValueError, match="ridge="):
            fit(ridge=ridge)
    with pytest.raises(TypeError, match="head is a SnnkHead"):
        fit(head=SnnkHead(16, 3, 8))
    with pytest.raises(ValueError, match="the head is no part of it"):
        fit(head=nn.Linear(8, 3))
    headless = model()
    headless.classifier = nn.Identity()
    with pytest.raises(ValueError, match="no linear layer that makes its logits"):
        fit(headless)
    with pytest.raises(ValueError, match="no linear layer"):
        fit_closed_form(nn.Sequential(nn.ReLU()), [(torch.ones(2, 3), torch.ones(2))])
    pair = (torch.randn(5, 2, 4), torch.arange(5) % 3)
    with pytest.raises(ValueError, match="something after its output layer"):
        fit_closed_form(Last(), [pair], progress=False)
    for spoilt in (Halved(4, 3), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))):
        with pytest.raises(ValueError, match="no linear layer"):
            fit_closed_form(nn.Sequential(spoilt), [pair], progress=False)
    # widths that do not go together are told by the head
    wide = model()
    wide.classifier = SnnkHead(15, 3, 8)
    with pytest.raises(ValueError, match="in_features=15"):
        fit(wide)


def test_a_row_that_is_not_a_number_is_refused_and_the_head_is_as_it_was():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3))
    before = network[0].weight.clone()
    x, y = torch.randn(10, 4), torch.arange(10) % 3
    good, bad = (x, y), (x.clone().index_fill_(0, torch.tensor([3]), torch.nan), y)
    with pytest.raises(ValueError, match="features hold NaN"):
        fit_closed_form(network, [good, bad], progress=False)
    assert torch.equal(network[0].weight, before)
    with pytest.raises(ValueError, match="targets hold NaN"):
        fit_closed_form(network, [(x, torch.full((10, 3), torch.nan))], progress=False)


def test_a_loader_that_is_read_once():
    loader = DataLoader([(torch.randn(4), n % 3) for n in range(9)], batch_size=4, shuffle=True)
    network = nn.Sequential(nn.Linear(4, 3))
    assert fit_closed_form(network, iter(loader), progress=False).rows == 9
