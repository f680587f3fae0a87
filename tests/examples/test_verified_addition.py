"""The verifier of sums, small: its table is what was counted."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "verified_addition.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("verified_addition", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # its dataclass looks itself up there
    sys.modules["verified_addition"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["verified_addition"]


@pytest.mark.filterwarnings("ignore::hf_softext.heads.sdm.diagnosis.EmptyRegionWarning")
def test_the_table_is_printed_and_consistent(example, capsys):
    sizes = example.Sizes(fit=400, test=100, steps=300, epochs=20)
    found = example.main(["--seeds", "0", "1", "--alpha", "0.6"], sizes)
    printed = capsys.readouterr().out
    assert printed.startswith("\nalpha 0.6, seeds [0, 1]")
    assert [line[:35].strip() for line in printed.splitlines()[2:]] == list(found)
    assert len(found) == 7
    for rows in found.values():
        assert len(rows) == 2
        for accuracy, share, _ in rows:
            assert np.isnan(accuracy) == (share == 0)
    verifier, lower = found["verifier"], found["verifier, lower bound"]
    assert all(low[1] <= high[1] for low, high in zip(lower, verifier, strict=True))
    for (_, share, _), (_, same, _) in zip(
        verifier, found["mean token probability, as many"], strict=True
    ):
        # ties come together
        assert same >= share
    assert all(share == 1 for _, share, _ in found["all answers"])


def test_no_sum_is_in_two_parts(example):
    sizes = example.Sizes()
    train, fit, test = example.divide(0, sizes)
    assert (len(train), len(fit), len(test)) == (2650, 4000, 2000)
    assert len({*train, *fit, *test}) == 8650
    assert sum(a % 10 + b % 10 > 9 for a, b in train) == sizes.carried


def test_probabilities_are_the_models_and_the_threshold_holds(example):
    words = example.tokenizer()
    torch.manual_seed(0)
    train, fit, _ = example.divide(0, example.Sizes())
    model = example.train(train, words, example.Sizes(steps=60, width=32), 0)
    pairs = fit[:20]
    texts, sure = example.answer(model, words, pairs)
    model.requires_grad_(False)
    for (a, b), text, mean in zip(pairs, texts, sure, strict=True):
        # without batch and cache, token by token
        ids = words(f"{a}+{b}=", return_tensors="pt")["input_ids"]
        start, probs = ids.shape[1], []
        while ids.shape[1] < start + 5 and ids[0, -1] != 1:
            last = model(ids).logits[0, -1].softmax(-1)
            probs.append(float(last.max()))
            ids = torch.cat([ids, last.argmax().view(1, 1)], 1)
        assert words.decode(ids[0, start:], skip_special_tokens=True) == text
        assert mean == pytest.approx(np.mean(probs), abs=1e-4)
    right = np.array([True, True, False, True, False, False])
    level = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert example.threshold(level, right, 0.75) == 0.6
    assert example.threshold(level, ~right, 0.75) == np.inf
