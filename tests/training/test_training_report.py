"""The page that a training leaves behind."""

import pytest

from hf_softext.training import training_report
from hf_softext.training.softext_trainer import SoftextTrainer
from hf_softext.training.training_report import curves_of
from tests.training.loss_steps import arguments, dataset, model


def test_every_checkpoint_has_a_page_of_what_was_logged(tmp_path):
    args = arguments(
        tmp_path,
        4,
        1,
        report=True,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        learning_rate=0.1,
    )
    trainer = SoftextTrainer(
        model=model("classes"),
        args=args,
        train_dataset=dataset("classes"),
        eval_dataset=dataset("classes"),
        loss="gce",
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    pages = [
        (tmp_path / folder / "report.html").read_text(encoding="utf-8")
        for folder in ("checkpoint-2", "checkpoint-4", "out")
    ]
    assert "<h1>gce: 2 steps" in pages[0]
    assert "<h1>gce: 4 steps" in pages[2]
    for page in pages:
        assert "<svg" in page
        assert "<script" not in page
        assert "src=" not in page
    last = trainer.state.log_history[-2]["eval_loss"]
    assert f"<td>{last:.6g}</td>" in pages[2]
    assert "&quot;q&quot;: 0.7" in pages[2]
    assert "report.html.tmp" not in {path.name for path in (tmp_path / "out").iterdir()}


def test_curves_are_what_was_logged_over_steps():
    log = [
        {"loss": 2.0, "grad_norm": 1.0, "step": 1, "epoch": 0.5},
        {"eval_loss": 1.5, "eval_accuracy": 0.5, "eval_runtime": 9.0, "step": 1},
        {"loss": float("nan"), "grad_norm": 2.0, "step": 2, "epoch": 1.0},
        {"train_loss": 1.0, "train_runtime": 3.0, "step": 2},
    ]
    found = curves_of(log)
    assert list(found) == ["loss", "grad_norm", "eval_accuracy"]
    assert list(found["loss"]) == ["loss", "eval_loss"]
    assert found["loss"]["eval_loss"] == [(1, 1.5)]
    assert found["grad_norm"]["grad_norm"] == [(1, 1.0), (2, 2.0)]


def test_names_are_text(tmp_path):
    name = "eval_</script><script>$\\frac{$"
    log = [{name: 1.0, "step": 1}, {name: 2.0, "step": 2}]
    config, facts = {"name": "<b>"}, {"model": "</pre><script>"}
    training_report.write_training_report(tmp_path / "page.html", log, config, facts)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<h1>&lt;b&gt;: 2 steps" in page


def test_without_matplotlib_it_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training_report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf-softext\[plots\]'"):
        SoftextTrainer(
            model=model("classes"),
            args=arguments(tmp_path, 4, 1, report=True),
            train_dataset=dataset("classes"),
        )
