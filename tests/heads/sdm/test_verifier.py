"""Verdicts on completions: what they are of, and that nothing but the completion changes them."""

import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_softext import SdmHead, SdmVerifier
from hf_softext.heads.sdm.completions import completion_rows
from tests.heads.sdm.answers import SETTINGS, answers, language_model, verifier, words
from tests.heads.sdm.cases import may_be_empty
from tests.heads.tiny import build


def summary(verdicts):
    return [(one.label, one.admit, one.admit_lower, one.reason) for one in verdicts]


def test_verdicts_are_the_heads_for_good_completions_only():
    judge = verifier()
    prompts, completions, good = answers(120, seed=1)
    verdicts = judge.verify(prompts, completions)
    rows = completion_rows(judge.tokenizer, prompts, completions)
    # features from scratch: each row alone, the last state and the mean of all
    features = []
    for row in rows:
        states = judge.model.model(torch.tensor([row["input_ids"]])).last_hidden_state[0].detach()
        features.append(torch.cat([states[-1], states.mean(0)]))
    output = judge.head(torch.stack(features))
    for place, verdict in enumerate(verdicts):
        predicted = int(output.prediction[place])
        assert verdict.label == ("bad", "good")[predicted]
        assert verdict.admit == (predicted == 1 and bool(output.admit[place]))
        assert verdict.admit_lower == (predicted == 1 and bool(output.admit_lower[place]))
        assert verdict.reason == (output.reason[place] if predicted else "predicted_bad")
        assert verdict.score == pytest.approx(float(output.probs[place, predicted]), abs=1e-4)
        assert verdict.score >= 0.5
        assert verdict.score_lower <= verdict.score + 1e-6
        assert verdict.similarity == float(output.similarity[place])
        assert len(verdict.exemplars) == 3
        assert verdict.exemplars[0]["id"] == output.nearest_id[place]
    admitted = [one for one, verdict in zip(good, verdicts, strict=True) if verdict.admit]
    assert len(admitted) > 20
    assert sum(admitted) / len(admitted) > 0.9
    # a prediction of "bad" that the head is sure of is no answer to rely on
    sure = output.admit & (output.prediction == 0)
    assert sure.any()
    assert not any(verdicts[place].admit for place in sure.nonzero().flatten().tolist())
    # what justifies a verdict is shown as it was read
    texts = {p + c for p, c in zip(*answers(400)[:2], strict=True)}
    assert {one["text"] for verdict in verdicts for one in verdict.exemplars} <= texts


def test_batches_ids_and_padding_do_not_matter():
    judge = verifier()
    prompts, completions, _ = answers(40, seed=2)
    whole = judge.verify(prompts, completions)
    ids = [[judge.tokenizer(text)["input_ids"] for text in part] for part in (prompts, completions)]
    for other in (judge.verify(prompts, completions, batch_size=1), judge.verify(*ids)):
        assert summary(other) == summary(whole)
        for one, two in zip(other, whole, strict=True):
            assert one.score == pytest.approx(two.score, abs=1e-4)
    assert judge.verify([], []) == []
    assert judge.verify(prompts[:1], completions[:1], exemplars=0)[0].exemplars == []


def test_an_empty_completion_is_the_end_of_the_sequence():
    judge = verifier()
    silent, said = judge.verify(["w1 w2"] * 2, ["", [2]])
    assert silent == said


@may_be_empty
def test_the_model_is_as_it_was():
    model = language_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    judge = SdmVerifier.fit(model, words(), *answers(120), **SETTINGS | {"epochs": 3})
    judge.verify(["w1"], ["w2"])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_gives_finite_verdicts_and_the_same_after_loading(tmp_path):
    # through a file, as a cast would round the angles of the positions too
    language_model(torch.bfloat16).save_pretrained(tmp_path / "model")
    words().save_pretrained(tmp_path / "model")
    model, again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
        for _ in range(2)
    )
    judge = SdmVerifier.fit(model, words(), *answers(300), **SETTINGS)
    asked = answers(40, seed=1)[:2]
    verdicts = judge.verify(*asked)
    assert any(one.admit for one in verdicts)
    judge.save_pretrained(tmp_path / "verifier")
    loaded = SdmVerifier.from_pretrained(
        tmp_path / "verifier", again, AutoTokenizer.from_pretrained(tmp_path / "model")
    )
    assert loaded.verify(*asked) == verdicts
    card = (tmp_path / "verifier" / "README.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    assert code[1].startswith("import hf_softext\n")
    assert "SdmVerifier.from_pretrained" in code[1]


@may_be_empty
def test_states_that_are_not_finite_have_no_label():
    model = language_model()
    judge = SdmVerifier.fit(model, words(), *answers(120), **SETTINGS | {"epochs": 3})
    with torch.no_grad():
        model.get_input_embeddings().weight[judge.tokenizer("w7")["input_ids"]] = torch.nan
    broken, whole = judge.verify(["w1", "w1"], ["w7", "w8"])
    assert (broken.label, broken.admit, broken.reason) == (None, False, "non_finite")
    assert broken.score != broken.score
    assert broken.exemplars == []
    assert whole.label in ("good", "bad")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"is_good": [True] * 4}, ValueError, "is_good is True throughout"),
        ({"is_good": [True, False]}, ValueError, "is_good has 2 values for 4 prompts"),
        ({"is_good": ["yes", "no"] * 2}, ValueError, "is_good holds 'yes'"),
        ({"is_good": [2, 0] * 2}, ValueError, "is_good holds 2"),
        ({"completions": ["w1"] * 3}, ValueError, "4 prompts and 3 completions"),
        ({"prompts": "w1 w2"}, TypeError, "prompts is a text"),
        ({"max_length": 3}, ValueError, "prompt 2 and its completion have 4 tokens"),
        ({"alpha": 0.5}, ValueError, "alpha=0.5 must be above 0.5"),
        ({"alpha": 5}, ValueError, "alpha=5 must be above 0.5"),
        ({"epoch": 5}, TypeError, "'epoch' is neither an argument nor a setting"),
        ({"model": build("t5")}, ValueError, "is an encoder-decoder"),
    ],
)
def test_mistakes_of_a_fit_say_what_to_do(change, error, message):
    given = {
        "model": language_model(),
        "tokenizer": words(),
        "prompts": ["w1", "w2", "w3 w4 w5", "w6"],
        "completions": ["w1"] * 4,
        "is_good": [True, False] * 2,
        **SETTINGS,
    }
    with pytest.raises(error, match=message):
        SdmVerifier.fit(**given | change)


def test_a_tokenizer_without_an_end_says_so_of_an_empty_completion():
    bare = words()
    bare.eos_token = None
    with pytest.raises(ValueError, match=r"completion 1 is empty, and the tokenizer has no eos"):
        completion_rows(bare, ["w1", "w1"], ["w2", ""])


@may_be_empty
def test_other_heads_and_other_models_are_refused(tmp_path):
    judge = verifier()
    with pytest.raises(ValueError, match="another digest"):
        SdmVerifier(build("llama"), judge.tokenizer, judge.head)
    prompts, _, good = answers(60)
    plain = SdmHead.fit(
        judge.model,
        words(),
        [{"text": text, "label": int(good)} for text, good in zip(prompts, good, strict=True)],
        **SETTINGS | {"epochs": 1},
    )
    with pytest.raises(ValueError, match="is no verifier"):
        SdmVerifier(judge.model, judge.tokenizer, plain)
    with pytest.raises(OSError, match="it is no folder of an SDM head"):
        SdmVerifier.from_pretrained(tmp_path, judge.model, judge.tokenizer)
    cast = SdmVerifier(language_model(), judge.tokenizer, judge.head)
    cast.model.bfloat16()
    with pytest.raises(ValueError, match=r"is torch\.bfloat16 now, and was torch\.float32"):
        cast.verify(["w1"], ["w2"])
    assert isinstance(judge.head, nn.Module)
    assert not judge.head.training
