"""Verified generation: the model's own answers, each with the verdict that it deserves."""

import dataclasses

import pytest
import torch

from hf_softext import SdmVerifier, generate_verified
from tests.heads.sdm.answers import language_model, verifier, words
from tests.heads.sdm.test_verifier import summary

PROMPTS = ["w1 w2 w3", "w50", "w60 w61 w62 w63", "w80 w2"]
# only words that the verifier has seen in answers, and the end
SAID = {2, *range(3, 9), *range(48, 54)}
SAMPLED = {
    "do_sample": True,
    "max_new_tokens": 5,
    "top_k": 0,
    "suppress_tokens": [token for token in range(97) if token not in SAID],
}


def said(judge, row):
    return judge.tokenizer.decode(row, skip_special_tokens=True)


def generated(model, tokenizer, **options):
    """Answers of `generate` as ids, without what follows the end."""
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(2)] if 2 in row else row for row in ids]


def test_answers_are_those_of_generate_and_verdicts_those_of_the_verifier():
    judge = verifier()
    for options in (
        {"max_new_tokens": 6, "do_sample": False},
        SAMPLED,
        {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True},
    ):
        torch.manual_seed(5)
        found = generate_verified(judge.model, judge, PROMPTS, **options)
        torch.manual_seed(5)
        plain = {name: one for name, one in options.items() if name != "return_dict_in_generate"}
        ids = generated(judge.model, judge.tokenizer, **plain)
        assert [one.text for one in found] == [said(judge, row) for row in ids]
        wanted = judge.verify(PROMPTS, ids)
        assert summary(one.verdict for one in found) == summary(wanted)
        assert [one.tries for one in found] == [1] * 4
        for one, other in zip(found, wanted, strict=True):
            assert one.verdict.score == pytest.approx(other.score, abs=1e-4)


def test_batches_that_are_padded_give_the_verdicts_of_single_prompts():
    judge = verifier()
    together = generate_verified(judge.model, judge, PROMPTS, max_new_tokens=6, do_sample=False)
    batch = judge.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    same = generate_verified(judge.model, judge, batch, max_new_tokens=6, do_sample=False)
    assert same == together
    for prompt, one in zip(PROMPTS, together, strict=True):
        (alone,) = generate_verified(
            judge.model, judge, [prompt], max_new_tokens=6, do_sample=False
        )
        assert alone.text == one.text
        assert summary([alone.verdict]) == summary([one.verdict])
    assert generate_verified(judge.model, judge, [], max_new_tokens=6) == []


def test_of_several_candidates_the_admitted_one_with_the_highest_score_is_taken():
    judge = verifier()
    torch.manual_seed(7)
    found = generate_verified(judge.model, judge, PROMPTS, num_candidates=8, **SAMPLED)
    torch.manual_seed(7)
    ids = generated(judge.model, judge.tokenizer, num_return_sequences=8, **SAMPLED)
    kinds = set()
    for place, one in enumerate(found):
        mine = ids[8 * place : 8 * place + 8]
        verdicts = judge.verify([PROMPTS[place]] * 8, mine)
        signs = [1 if verdict.label == "good" else -1 for verdict in verdicts]
        ranks = [(v.admit, sign * v.score) for v, sign in zip(verdicts, signs, strict=True)]
        best = ranks.index(max(ranks))
        assert one.text == said(judge, mine[best])
        assert one.verdict.score == pytest.approx(verdicts[best].score, abs=1e-4)
        assert one.tries == 8
        kinds.add(one.verdict.admit)
    assert True in kinds


class Script:
    """A verifier that has its verdicts by heart; answers are judged by their number."""

    def __init__(self, judge: SdmVerifier, verdicts):
        self.model, self.tokenizer, self.verdicts = judge.model, judge.tokenizer, list(verdicts)
        self.asked = []

    def verify(self, prompts, completions):
        self.asked.append(len(prompts))
        return [self.verdicts.pop(0) for _ in prompts]


def verdict(score, admit):
    (real,) = verifier().verify(["w1"], ["w2"])
    return dataclasses.replace(real, score=score, admit=admit, label="good")


def test_resampling_goes_on_until_one_is_admitted():
    judge = verifier()
    low, high, yes = verdict(0.2, False), verdict(0.8, False), verdict(0.6, True)
    # the first prompt is admitted at once, the second at the third try, the third never
    script = Script(judge, [yes, low, high, high, low, yes, low])
    found = generate_verified(
        judge.model, script, PROMPTS[:3], num_candidates=2, on_reject="resample", **SAMPLED
    )
    assert script.asked == [3, 2, 2]
    assert [one.tries for one in found] == [1, 3, 3]
    assert [one.verdict for one in found] == [yes, yes, high]
    assert all(one.text is not None for one in found)


def test_refused_answers_are_withheld_on_demand():
    judge = verifier()
    script = Script(judge, [verdict(0.9, False), verdict(0.7, True)])
    found = generate_verified(
        judge.model, script, PROMPTS[:2], on_reject=None, max_new_tokens=3, do_sample=False
    )
    assert found[0].text is None
    assert found[0].verdict.score == 0.9
    assert found[1].text is not None


def test_an_answer_that_ends_at_once_is_judged_by_its_end():
    judge = verifier()
    end = {"forced_eos_token_id": 2, "max_new_tokens": 1}
    (one,) = generate_verified(judge.model, judge, ["w1 w2"], **end)
    assert one.text == ""
    assert summary([one.verdict]) == summary(judge.verify(["w1 w2"], [""]))
    bare = SdmVerifier(judge.model, words(), judge.head)
    bare.tokenizer.eos_token = None
    (same,) = generate_verified(judge.model, bare, ["w1 w2"], **end)
    assert summary([same.verdict]) == summary([one.verdict])


def test_mistakes_say_what_to_do():
    judge = verifier()
    right = judge.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="right")
    pixels = {**judge.tokenizer(["w1"], return_tensors="pt"), "pixel_values": torch.zeros(1)}
    cases = [
        ({"model": language_model()}, ValueError, "model is not the verifier's"),
        ({"inputs": "w1"}, TypeError, "give a list of prompts"),
        ({"inputs": right}, ValueError, "padded on the right"),
        ({"inputs": dict(judge.tokenizer(PROMPTS))}, TypeError, "return_tensors='pt'"),
        ({"inputs": ["w1", ""]}, ValueError, r"prompt 1 \(1 in all\) has no tokens"),
        ({"inputs": pixels}, ValueError, "pixel_values"),
        ({"num_candidates": 0}, ValueError, "num_candidates=0"),
        ({"num_candidates": True}, ValueError, "num_candidates=True"),
        ({"num_candidates": 3}, ValueError, "give do_sample=True"),
        ({"on_reject": "resample"}, ValueError, "give do_sample=True"),
        ({"on_reject": "drop"}, ValueError, "on_reject='drop'"),
        ({"num_return_sequences": 2}, ValueError, "use num_candidates"),
    ]
    for change, error, message in cases:
        given = {"model": judge.model, "verifier": judge, "inputs": PROMPTS, **change}
        with pytest.raises(error, match=message):
            generate_verified(**given)
    bare = SdmVerifier(judge.model, words(), judge.head)
    bare.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="has no pad_token"):
        generate_verified(judge.model, bare, PROMPTS)
    # one prompt needs no padding
    (one,) = generate_verified(judge.model, bare, PROMPTS[:1], max_new_tokens=2, do_sample=False)
    assert one.verdict.label in ("good", "bad")
