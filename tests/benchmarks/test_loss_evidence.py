"""Every experiment runs with every loss, counts what it says, and is not run twice."""

import gzip
import math
import struct

import _loss_data as data
import _loss_pixels as pixels
import _loss_rare as rare
import _loss_students as students
import _loss_tasks as tasks
import loss_evidence
import loss_evidence_report
import pytest
import torch
from _loss_data import Split
from _loss_fit import Contender, Plan, Result, Task, hits, share
from sklearn import metrics
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from hf_softext.demo.sentence import minilm

CLASSES, LABELS = 6, 28


def gaussians(rows, seed):
    """Rows near the corner of their class, on the sphere."""
    random = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % CLASSES
    x = torch.eye(CLASSES, 8)[y] + 0.2 * torch.randn(rows, 8, generator=random)
    return Split(torch.nn.functional.normalize(x, dim=-1), y)


WORDS = ("where", "is", "my", "card", "please")


def queries(each):
    """Queries of classes that a word tells apart."""
    intents = ["a", "b", "c", *rare.URGENT]
    return [(f"{WORDS[row % 5]} {intent}", intent) for intent in intents for row in range(each)]


def save_encoder(folder):
    """A BERT of three small layers, with a word tokenizer."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "a", "b", "c", *rare.URGENT]
    numbered = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbered, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Synthetic data, small plans, and every experiment on them."""
    parts = {name: gaussians(96, seed) for seed, name in enumerate(data.SPLITS)}
    many = {
        name: Split(x.x, torch.nn.functional.one_hot(x.y, LABELS).float())
        for name, x in parts.items()
    }
    for split in many.values():
        split.y[::3, 7] = 1
        split.y[::8, [rare.FEAR]] = 1
    random = torch.Generator().manual_seed(0)
    images = {
        name: Split(torch.rand(48, 1, 28, 28, generator=random), torch.arange(48) % 10)
        for name in data.SPLITS
    }
    monkeypatch.setattr(data, "clinc", lambda layers=6: parts)
    monkeypatch.setattr(data, "intents", lambda: ["a", "b", "c", *rare.URGENT])
    monkeypatch.setattr(data, "goemotions", lambda folder: many)
    monkeypatch.setattr(data, "mnist", lambda folder: images)
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    students.queries.cache_clear()
    folder = save_encoder(tmp_path / "encoder")
    monkeypatch.setattr(students, "source", lambda: folder)
    monkeypatch.setattr(students, "clinc150", lambda: {name: queries(16) for name in data.SPLITS})
    monkeypatch.setattr(students, "TEACHER_LAYERS", 3)
    plan = Plan(8, 2, 32)
    for module, names in {
        tasks: ("NOISE_PLAN",),
        students: ("STUDENT_PLAN", "TEACHER_PLAN"),
        rare: ("MULTILABEL_PLAN", "IMBALANCE_PLAN"),
        pixels: ("PLAN",),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, plan)
    for name in ("goemotions", "mnist"):
        (tmp_path / name).mkdir()
    yield loss_evidence.find_tasks(tmp_path)
    students.queries.cache_clear()


@pytest.mark.parametrize("name", loss_evidence.EXPERIMENTS)
def test_every_loss_runs_in_every_experiment(name, small):
    task = small[name]
    assert task.baseline in task.contenders
    setting = list(task.settings.values())[-1]
    bounds = loss_evidence_report.TEXTS[name].bounds
    assert {*bounds, loss_evidence_report.TEXTS[name].baseline} <= task.contenders.keys()
    tries = {len(c.tries) for label, c in task.contenders.items() if label not in bounds}
    # the same budget for all
    assert len(tries) == 1
    for contender in task.contenders.values():
        for knobs in contender.knobs:
            found = task.run(setting, contender, knobs, contender.rates[0], 0)
            assert found.keys() == task.measures.keys()
            for measure, result in found.items():
                assert 0 <= task.measures[measure](result.counts.sum(0)) <= 1
                assert 0 <= result.score <= 1
                assert len(result.counts) in (96, 48)


def test_without_files_two_experiments_are_left_out():
    assert set(loss_evidence.EXPERIMENTS) - loss_evidence.find_tasks(None).keys() == {
        "multilabel",
        "adversarial",
    }


def test_measures_are_those_of_scikit_learn():
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 5, generator=random)
    labels = (torch.rand(200, 5, generator=random) < 0.3).float()
    said = (logits > 0.4).int()
    sums = rare.errors(logits, labels, 0.4).sum(0)
    for average, measure in (("macro", rare.macro_f1), ("micro", rare.micro_f1)):
        assert measure(sums).item() == pytest.approx(
            metrics.f1_score(labels, said, average=average)
        )
    one = rare.confusion(logits[:, :1], labels[:, :1], 0.4).sum(0)
    y, z = labels[:, 0], said[:, 0]
    recall = [metrics.recall_score(y, z, pos_label=label) for label in (0, 1)]
    assert rare.f1(one).item() == pytest.approx(metrics.f1_score(y, z))
    assert rare.balanced_accuracy(one).item() == pytest.approx(sum(recall) / 2)


def test_the_tuned_threshold_is_the_best_there_is():
    random = torch.Generator().manual_seed(2)
    labels = (torch.rand(150, 1, generator=random) < 0.1).float()
    logits = torch.randn(150, 1, generator=random) + labels - 3
    at = rare.threshold_for(rare.f1, rare.confusion, logits, labels)
    every = [rare.f1(rare.confusion(logits, labels, t).sum(0)) for t in logits[:, 0].tolist()]
    assert rare.f1(rare.confusion(logits, labels, at).sum(0)) >= max(every) - 0.02
    assert rare.f1(rare.confusion(logits, labels, at).sum(0)) > rare.f1(
        rare.confusion(logits, labels, 0.0).sum(0)
    )


def test_a_threshold_lies_in_the_middle_between_classes_that_it_parts():
    logits = torch.tensor([-3.0, -2.5, -2.0, -1.0, 5.0, 6.0])[:, None]
    labels = (logits > 0).float()
    assert rare.threshold_for(rare.f1, rare.confusion, logits, labels) == 2.0


def test_noise_is_of_the_size_it_says_and_never_the_label_itself():
    labels = torch.arange(20_000) % 50
    noisy = tasks.flip(labels, 0.3, 50, seed=3)
    assert (noisy != labels).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(tasks.flip(labels, 0.0, 50, seed=3), labels)
    wrong = (noisy - labels)[noisy != labels] % 50
    assert (
        wrong.bincount(minlength=50)[1:].float().std() < 0.2 * wrong.bincount()[1:].float().mean()
    )


def test_an_attack_stays_in_its_ball_and_does_harm():
    torch.manual_seed(0)
    model, x, y = pixels.network(), torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    # some pixels at the ends, where the ball is cut
    x = x.mul(1.4).sub(0.2).clamp(0, 1)
    for ascend in (pixels.cross_entropy(y), pixels.margin(y)):
        moved = pixels.attack(model, x, ascend, 10, torch.Generator().manual_seed(0))
        assert (moved - x).abs().max() <= pixels.EPSILON + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert ascend(model(moved)) > ascend(model(x)) + 0.1
    right = model(x).argmax(-1) == y
    left = pixels.survives(model, Split(x, y), pixels.cross_entropy, 10, seed=0)
    assert not (left & ~right).any()


def toy(run):
    """Two losses, of which one is better by 0.2 in every seed, and two tries."""
    contenders = {
        "ce": Contender("ce", rates=(0.1, 0.2)),
        "good": Contender("gce", ({"q": 0.5},), (0.1,)),
    }
    return Task({"here": 1}, "ce", contenders, {"accuracy": share}, run, "small")


def toy_run(setting, contender, knobs, rate, seed):
    right = torch.arange(1000) % 10 < (7 if contender.loss == "gce" else 5)
    right[: seed if seed < 100 else 0] = False
    return {"accuracy": Result(rate, hits(right), 0.9)}


def test_what_was_measured_is_not_measured_again(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    calls, csv = [], tmp_path / "figures.csv"

    def run(setting, contender, knobs, rate, seed):
        calls.append((contender.loss, rate, seed))
        return toy_run(setting, contender, knobs, rate, seed)

    loss_evidence.measure("noise", toy(run), 3, csv)
    tries = [("ce", rate, loss_evidence.CHOICE_SEED) for rate in (0.1, 0.2)]
    tests = [("ce", 0.2, seed) for seed in range(3)] + [("gce", 0.1, seed) for seed in range(3)]
    assert calls == tries + tests
    calls.clear()
    loss_evidence.measure("noise", toy(run), 3, csv)
    assert calls == []
    lines = csv.read_text(encoding="utf-8").splitlines()
    # a test of the baseline is lost
    csv.write_text("\n".join([*lines[:4], *lines[5:]]) + "\n", encoding="utf-8")
    loss_evidence.measure("noise", toy(run), 3, csv)
    assert calls == [("ce", 0.2, 1)]
    # figures of another plan do not count
    loss_evidence.measure("noise", toy(run)._replace(plan="large"), 1, tmp_path / "other.csv")
    calls.clear()
    loss_evidence.measure("noise", toy(run), 1, tmp_path / "other.csv")
    assert len(calls) == 4
    page = loss_evidence_report.report(loss_evidence.read(csv))
    assert "| ce | 49.9 | 90 | 2 | rate 0.2 (highest) |" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| good"))
    assert row.startswith("| good | 69.9; +20.0 ± 0.0 ± ")
    assert "**better**" in row
    assert row.endswith("| 90 | 1 | q 0.5, rate 0.1 |")
    assert "| noise | good | 1 | 0 | 0 |" in page


def test_a_teacher_is_trained_once_and_its_rows_are_those_of_the_students(small, monkeypatch):
    task, setting = small["distillation"], students.STUDENT_LAYERS
    contender = task.contenders["kd"]
    first = task.run(setting, contender, {"alpha": 0.5}, 1e-2, 0)["accuracy"]
    said = students.teacher()
    assert said["train"].shape == (6 * students.TRAIN_ROWS, 6)
    assert said["test"].shape == (96, 6)
    for name, rows in students.queries().items():
        own = students.trained(3, Plan(8, 2, 32), "ce", {}, 5e-4, 0, students.queries()["train"])
        torch.testing.assert_close(said[name], students.answers(own, rows))
    seen = []
    train = students.trained

    def spy(*given):
        seen.append(given)
        return train(*given)

    monkeypatch.setattr(students, "trained", spy)
    again = task.run(setting, contender, {"alpha": 0.5}, 1e-2, 0)["accuracy"]
    assert torch.equal(first.counts, again.counts)
    (call,) = seen
    assert call[0] == 2
    torch.testing.assert_close(torch.tensor(call[-1]["teacher_logits"]), said["train"])


def test_the_picture_is_drawn_and_bounds_get_no_word(tmp_path):
    pytest.importorskip("matplotlib")
    from loss_evidence_plot import save_plot

    own = {"experiment": "distillation", "setting": "s", "plan": "p", "measure": "accuracy"}
    own |= {"split": "test", "knobs": "{}", "rate": "1", "low": "", "high": "", "fit": "nan"}
    rows = [
        {**own, "loss": loss, "seed": str(seed), "value": str(value + 0.001 * seed)}
        for loss, value in (("ce", 0.5), ("kd", 0.6), (students.TEACHER, 0.9))
        for seed in range(3)
    ]
    over = {"split": "test rows", "seed": "0 to 2", "value": "0.1", "low": "0.05", "high": "0.2"}
    rows += [{**own, "loss": loss, **over} for loss in ("kd", students.TEACHER)]
    tables = loss_evidence_report.tables_of(rows)
    ((_, _, table),) = tables
    assert [(loss, word) for loss, _, (*_, word) in table.judged()] == [("kd", "better")]
    assert "**" not in table.cell(students.TEACHER, "accuracy")
    assert table.against("kd", "ce").endswith("accuracy +10.0 ± 0.0.")
    for name in ("one", "two"):
        save_plot(tables, tmp_path / f"{name}.svg")
    assert "<svg" in (tmp_path / "one.svg").read_text(encoding="utf-8")


def test_the_bootstrap_is_the_normal_one_for_a_share():
    right = [torch.arange(400) % 4 != 0]
    task = toy(toy_run)
    spread = loss_evidence.resampled(task, "accuracy", [hits(r).double() for r in right]).std()
    assert spread.item() == pytest.approx(math.sqrt(0.25 * 0.75 / 400), rel=0.1)


@pytest.mark.parametrize(
    ("gaps", "rows", "word"),
    [
        ([0.1, 0.11, 0.12], (0.05, 0.2), loss_evidence_report.BETTER),
        ([0.1, 0.11, 0.12], (-0.05, 0.2), loss_evidence_report.NEITHER),
        ([-0.1, -0.11, -0.12], (-0.3, -0.1), loss_evidence_report.WORSE),
        ([0.0, 0.1, 0.3], (0.05, 0.2), loss_evidence_report.NEITHER),
        ([0.3], (0.05, 0.2), loss_evidence_report.NEITHER),
    ],
)
def test_only_what_both_intervals_say_is_said(gaps, rows, word):
    assert loss_evidence_report.verdict(gaps, rows)[1] == word


def test_files_are_read_as_they_are_published(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        data, "embeddings", lambda name, texts: seen.extend(texts) or torch.zeros(len(texts), 4)
    )
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text(
            f"{name} a\t4,27\tid\n\tb\n{name} c\t0\tid\n", "utf-8"
        )
    found = data.goemotions.__wrapped__(tmp_path)["val"]
    assert found.y.nonzero().tolist() == [[0, 4], [0, 27], [1, 0]]
    assert seen[2:4] == ["dev a", "dev c"]
    pictures = bytes(i % 256 for i in range(20 * 784))
    header = struct.pack(">4i", 2051, 20, 28, 28)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pictures))
    with pytest.raises(FileNotFoundError, match=r"labels-idx1-ubyte.gz is not there; it is from"):
        data.mnist.__wrapped__(tmp_path)
    labels = struct.pack(">2i", 2049, 20) + bytes(range(20))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    parts = data.mnist.__wrapped__(tmp_path)
    assert [len(parts[name]) for name in data.SPLITS] == [14, 2, 4]
    for split in parts.values():
        for x, y in zip(split.x, split.y.tolist(), strict=True):
            assert (x.flatten() * 255).round().int().tolist() == list(
                pictures[y * 784 : (y + 1) * 784]
            )


def test_embeddings_are_means_of_a_layer_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    texts = ["a much longer sentence than the other", "short"]
    found = data.embeddings("x", texts, layers=2)
    model, tokenizer = AutoModel.from_pretrained(minilm()), AutoTokenizer.from_pretrained(minilm())
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        mean = states.hidden_states[2][0].mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(data, "_encode", None)
    assert torch.equal(data.embeddings("x", texts, layers=2), found)
