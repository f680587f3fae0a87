"""Adapters train what they say, nothing is run twice, and the page says what was found."""

import csv
import math
import sys
from dataclasses import replace

import _adapter_lm as lm
import _adapter_sets as sets
import _adapter_texts as texts
import adapters
import adapters_report
import pytest
import torch
import torch.nn.functional as F
from _adapter_fit import Outcome, fit
from _adapter_methods import HEAD, Bottleneck, Method, groups
from _adapter_tiny import WIDTH, tiny_llama, tiny_tasks
from adapters_report import Result
from transformers import AutoModel, AutoTokenizer

from hf_softext.demo.sentence import minilm

# of every kind, placement and start the smallest
EVERY = [
    *{method.label.partition(",")[0]: method for method in reversed(sets.METHODS[1:])}.values(),
    *sets.EXPLORED["python"],
]
# peft asks transformers for a property by a name that it no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def tasks():
    return tiny_tasks()


def built(task, method):
    """The adapted model of a task, and a loss of it."""
    if task.name == "python":
        model, batch = task._build(method, 0), next(lm.windows(task.train, 4, 16, 0))
        return model, lambda: lm.loss(model, batch)
    top, batch = task._build(method, 0)[0], task.train[0].batch(torch.arange(8))
    return top.layers, lambda: F.cross_entropy(top(*batch[:2]), batch[2])


@pytest.mark.parametrize("name", ["clinc150", "python"])
@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.label)
def test_an_adapter_starts_as_the_identity_and_nothing_else_is_trained(method, name, tasks):
    model, loss = built(tasks[name], method)
    assert torch.equal(loss(), built(tasks[name], sets.METHODS[0])[1]())
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    fit(groups(method, model, 0.05), iter(lambda: loss, None), 4)
    for key, weight in model.named_parameters():
        assert weight.requires_grad != torch.equal(weight, before[key]), key


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("SNNK relu, 8", 4 * WIDTH * (8 + 1)),
        ("SNNK linear, 16", 4 * WIDTH * (16 + 1)),
        ("bottleneck, 8", 4 * (2 * WIDTH * 8 + 8 + WIDTH)),
        ("LoRA q v, 8", 4 * 2 * WIDTH * 8),
        ("LoRA all, 8", 2 * (4 * 2 * WIDTH + 2 * 3 * WIDTH) * 8),
        ("VeRA q v, 256", 4 * (WIDTH + 256)),
        (HEAD, 0),
    ],
)
def test_what_is_trained_is_counted(label, expected, tasks):
    method = next(method for method in sets.METHODS if method.label == label)
    outcome = tasks["clinc150"].run(method, 1e-3, 0)
    assert (outcome.adapter, outcome.whole) == (expected, expected + 4 * (WIDTH + 1))
    if label == HEAD:
        # of the language model it is a rival of adapters, not their companion
        outcome = tasks["python"].run(method, 1e-3, 0)
        assert (outcome.adapter, outcome.whole) == (256 * WIDTH, 256 * WIDTH)


def test_a_gate_has_its_own_rate_and_starts_are_what_they_say(tasks):
    method = Method("x", "SNNK relu", 0, options={"num_features": 4}, gate=10.0)
    model, _ = built(tasks["python"], method)
    others, gates = groups(method, model, 0.1)
    assert gates["lr"] == pytest.approx(1.0)
    assert others["lr"] == 0.1
    assert {weight.ndim for weight in gates["params"]} == {1}
    assert {weight.ndim for weight in others["params"]} == {2}
    for start, scale in ((0.2, 10.0), ("zero", 0.0)):
        other, _ = built(tasks["python"], replace(method, start=start))
        own = model.get_submodule("model.layers.0.mlp.down_proj").snnk_weight["default"]
        its = other.get_submodule("model.layers.0.mlp.down_proj").snnk_weight["default"]
        torch.testing.assert_close(its, own * scale)


def test_a_bottleneck_is_its_formula():
    torch.manual_seed(0)
    base = torch.nn.Linear(5, 7)
    made = Bottleneck(base, 3)
    torch.nn.init.normal_(made.up.weight)
    torch.nn.init.normal_(made.up.bias)
    x = torch.randn(2, 4, 5)
    y = x @ base.weight.T + base.bias
    hidden = (y @ made.down.weight.T + made.down.bias).clamp(min=0)
    torch.testing.assert_close(made(x), y + hidden @ made.up.weight.T + made.up.bias)
    made.parallel, made.down = True, torch.nn.Linear(5, 3)
    hidden = made.down(x).clamp(min=0)
    torch.testing.assert_close(made(x), y + hidden @ made.up.weight.T + made.up.bias)
    assert Bottleneck(base, 3, parallel=True).down.in_features == 5


def test_cached_layers_and_trained_ones_make_up_the_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "CACHE", tmp_path)
    said = [("a much longer sentence than the other", "b"), ("short", "a"), ("one more", "b")]
    rows = texts.states("x", said, ["a", "b"])
    assert rows.labels.tolist() == [1, 0, 1]
    top = texts.Top(texts.top_layers().eval(), torch.eye(2, 384))
    model, tokenizer = AutoModel.from_pretrained(minilm()), AutoTokenizer.from_pretrained(minilm())
    with torch.no_grad():
        found = top.embed(*rows.batch(torch.arange(3))[:2])
        for text, row in zip(said, found, strict=True):
            mean = model(**tokenizer(text[0], return_tensors="pt")).last_hidden_state[0].mean(0)
            torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(top.classify(found), found[:, :2] * 384**0.5)
    monkeypatch.setattr(texts, "_encode", None)
    assert torch.equal(texts.states("x", said, ["a", "b"]).states, rows.states)


def test_an_epoch_of_like_lengths_has_every_row_once(tasks):
    task = tasks["clinc150"]
    batches = task._order(task.train[0], 3)
    seen = torch.cat([next(batches) for _ in range(3)])
    assert sorted(seen.tolist()) == list(range(24))


def test_draws_differ_and_leave_out_what_chooses(tmp_path):
    for name, count in (("train", 12), ("test", 4)):
        lines = ["text,category"] + [f'"{name} {i}, {c}",{c}' for i in range(count) for c in "ab"]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draws, valid, test = texts.banking(tmp_path, {"train": 5, "valid": 3, "test": 4})
    assert [len(set(rows)) for rows in (*draws, valid, test)] == [10, 10, 10, 6, 8]
    assert all(not set(rows) & set(valid) for rows in draws)
    assert len({frozenset(rows) for rows in draws}) == 3
    with pytest.raises(FileNotFoundError, match=r"train.csv is not there; .*task-specific"):
        texts.banking(tmp_path / "none", {"train": 5, "valid": 3, "test": 4})


def test_the_loss_is_that_of_transformers():
    model, rows = tiny_llama().eval(), torch.randint(256, (20, 16))
    with torch.no_grad():
        expected = model(input_ids=rows, labels=rows).loss.item()
    assert lm.mean_loss(model, rows) == pytest.approx(expected, rel=1e-5)


def test_windows_of_a_stream():
    stream = torch.arange(50)
    batch = next(lm.windows(stream, 200, 8, 0))
    assert torch.equal(batch, batch[:, :1] + torch.arange(8))
    assert (batch.min(), batch.max()) == (0, 49)


def test_the_language_model_is_trained_once_and_its_texts_are_of_different_files(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(lm, "CACHE", tmp_path)
    monkeypatch.setattr(lm, "SIZES", tiny_llama().config.to_dict())
    monkeypatch.setattr(lm, "BASE", {"steps": 30, "batch": 8, "length": 32, "rate": 1e-2})
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(f'{{"text": "{c * 40}"}}\n' for c in "abcdef"), encoding="utf-8")
    monkeypatch.setattr(lm, "corpus", lambda: corpus)
    model = lm.base()
    shakespeare = lm.as_bytes(lm.shakespeare()[1])[:2048].view(-1, 64)
    assert lm.mean_loss(model, shakespeare) < 0.8 * math.log(256)
    monkeypatch.setattr(lm, "fit", None)
    assert torch.equal(lm.base().lm_head.weight, model.lm_head.weight)
    plan = {"train": 100, "length": 16, "valid": 1, "test": 4}
    task = lm.python_task(plan)
    assert set(task.train.tolist()) == set(b"abc")
    held_out = torch.cat([task.valid, task.test])
    assert set(held_out.flatten().tolist()) == set(b"de")
    assert (len(task.valid), len(task.test)) == (1, 4)


class Peak:
    """A task whose validation measure is best at one learning rate."""

    sign, shift, name, plan, head_rate = -1, 0, "python", {"a": 1}, 0.0

    def __init__(self, rate):
        self.rate, self.runs = rate, []

    def run(self, method, rate, seed):
        self.runs.append((method.label, rate, seed))
        # what goes astray is never chosen
        valid = math.nan if rate > 1 else abs(math.log10(rate / self.rate))
        return Outcome(valid, lambda: valid + seed, 3, 5)

    def step(self, method):
        self.runs.append((method.label, "step"))
        return lambda: None


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.01, [0.00316, 0.01, 0.0316]),
        (0.1, [0.00316, 0.01, 0.0316, 0.1, 0.316]),
        (1e-4, [0.00316, 0.01, 0.0316, 0.001, 0.000316, 0.0001]),
    ],
)
def test_a_grid_grows_towards_the_best_and_nothing_is_run_twice(best, tried, tmp_path):
    task, path = Peak(best), tmp_path / "x.csv"
    figures, method = adapters.Figures(path, task), Method("one", "LoRA", -4)
    adapters.compare(figures, method)
    assert task.runs == [("one", rate, 0) for rate in tried] + [("one", best, s) for s in (1, 2)]
    main = figures.rows(adapters.MAIN, method)
    assert [(x["seed"], float(x["rate"]), float(x["test"])) for x in main] == [
        (str(seed), best, seed) for seed in range(3)
    ]
    task.runs.clear()
    adapters.compare(figures, method)
    assert task.runs == []
    # with other settings it is another measurement
    adapters.compare(figures, Method("one", "LoRA", -4, options={"r": 2}))
    assert len(task.runs) == len(tried) + 2
    adapters.measure_cost(figures, [method])
    adapters.measure_cost(figures, [method])
    assert task.runs.count(("one", "step")) == 1


def test_what_went_astray_is_not_chosen(tmp_path):
    task = Peak(1.0)
    rate, _ = adapters.search(
        adapters.Figures(tmp_path / "x.csv", task), "rate", Method("a", "", 0)
    )
    assert rate == 1.0
    assert max(rate for _, rate, _ in task.runs) > 1


def lines(path, *more):
    with path.open(encoding="utf-8") as file:
        return [*csv.DictReader(file), *more]


def test_the_program_runs_tiny_and_writes_its_page(tmp_path, monkeypatch, capsys):
    chosen = [m for m in sets.METHODS if m.label in (HEAD, "SNNK relu, 4", "bottleneck, 32")]
    monkeypatch.setattr(adapters, "COMPARED", dict.fromkeys(sets.COMPARED, chosen))
    monkeypatch.setattr(adapters, "EXPLORED", {"python": sets.EXPLORED["python"][:2]})
    path = tmp_path / "x.csv"
    words = ["adapters.py", "--tiny", "--csv", str(path), "--docs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    adapters.main()
    first = path.read_bytes()
    adapters.main()
    assert path.read_bytes() == first
    found = lines(path)
    assert {row["stage"] for row in found} == {"explore", "rate", "main", "cost"}
    assert all(float(row["step_ms"]) > 0 for row in found if row["stage"] == "cost")
    assert all(row["test"] == "" for row in found if row["stage"] in ("explore", "rate"))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [*words, "--report"])
    adapters.main()
    page = (tmp_path / "adapters.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    for title in ("CLINC150", "Banking77", "Shakespeare to Python"):
        assert f"## {title}" in page
    assert page.count("| SNNK relu, 4 | 640 |") == 3
    assert 5_000 < (tmp_path / "adapters.png").stat().st_size < 80_000


def test_missing_data_is_said():
    with pytest.raises(SystemExit, match="banking77: give --data"):
        adapters.TASKS["banking77"](None)


def result(label, parameters, values):
    return Result(label, parameters, parameters, "0.1", dict(enumerate(values)))


def test_the_front_is_those_that_nobody_beats():
    found = [
        result("none", 0, [1.0]),
        result("worse", 10, [0.9]),
        result("good", 10, [2.0]),
        result("same for more", 20, [2.0]),
        result("best", 50, [3.0]),
    ]
    assert adapters_report.front(found, 1) == {"none", "good", "best"}
    assert adapters_report.front(found, -1) == {"none", "worse"}


def test_gaps_are_paired_by_seed():
    one, other = result("a", 1, [3.0, 5.0, 8.0]), result("b", 1, [1.0, 2.0, 4.0])
    difference, error = adapters_report.gap(one, other, 1)
    assert difference == pytest.approx(3.0)
    assert error == pytest.approx(1 / math.sqrt(3))
    assert adapters_report.gap(one, other, -1)[0] == pytest.approx(-3.0)


def said(label, parameters, values, task="python"):
    row = {"stage": "main", "task": task, "method": label, "rate": "0.1"}
    sizes = {"adapter_parameters": str(parameters), "all_parameters": str(parameters)}
    return [row | sizes | {"seed": str(i), "test": str(x)} for i, x in enumerate(values)]


def test_tables_of_equal_size_and_of_a_fifth():
    found = [
        *said("SNNK relu, 4", 100, [2.0, 2.1, 2.2]),
        *said("small", 110, [1.9, 2.0, 2.1]),
        *said("tiny", 90, [2.0, 2.2, 2.1]),
        *said("large", 500, [1.0, 1.1, 1.3]),
        *said("poor", 1000, [2.1, 2.3, 2.4]),
    ]
    equal = adapters_report.equal_table(found, "python").splitlines()[2:]
    assert equal == [
        "| SNNK relu, 4 | 100 | small | 110 | -0.100 ± 0.000 | worse |",
        "| SNNK relu, 4 | 100 | tiny | 90 | +0.000 ± 0.248 | not told apart |",
    ]
    fifth = adapters_report.fifth_table(found, "python").splitlines()[2:]
    large, poor = (next(x for x in fifth if x.startswith(f"| {n}")) for n in ("large", "poor"))
    assert "| SNNK relu, 4, 5.0x fewer | -0.967" in large
    assert large.count("| no |") == large.count(" no |") == 2
    assert poor.count("| yes |") == 2
    enough = adapters_report.enough_table(found, "python").splitlines()[2:]
    assert "| poor | 1,000 | SNNK relu, 4 | 10.0x | tiny | 11.1x |" in enough
    assert "| large | 500 | none |  | none |  |" in enough
    assert "| tiny | 90 | SNNK relu, 4 | 0.9x | small | 0.8x |" in enough
