"""StableMax in generate, with a real model: exact probabilities, order, beam search."""

import copy

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from hf_softext.functional import log_stablemax, stablemax, stablemax_logits
from hf_softext.generation import StableMaxLogitsProcessor, stablemax_decoding
from tests.models import model

LLAMA = model("llama")
INF = float("inf")


def generate(llama, *processors, padding="left", **kwargs):
    torch.manual_seed(3)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": True, "top_k": 0}
    return llama.generate(
        **LLAMA.inputs(padding),
        logits_processor=hf.LogitsProcessorList(processors),
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **{**settings, **kwargs},
    )


@pytest.fixture
def llama():
    tiny = LLAMA.build()
    # logits of the size that a StableMax loss trains: softmax would all but always take one token
    tiny.lm_head.weight.data.mul_(8)
    return tiny


def allowed(logits):
    """What min_new_tokens makes of them: no end of sequence."""
    logits = logits.clone()
    logits[:, LLAMA.config().eos_token_id] = -INF
    return logits


def test_sampling_probabilities_are_stablemax_of_the_logits(llama):
    found = generate(llama, StableMaxLogitsProcessor())
    assert len(found.scores) == 4
    for scores, logits in zip(found.scores, found.logits, strict=True):
        assert scores.shape == (2, 50)
        torch.testing.assert_close(scores.softmax(dim=-1), stablemax(allowed(logits)))
        # the end was ruled out before, and is still
        assert (scores == -INF).sum() == 2
        assert not torch.allclose(scores.softmax(dim=-1), allowed(logits).softmax(dim=-1))


def test_sampling_frequencies(llama):
    found = generate(
        llama, StableMaxLogitsProcessor(), padding=None, max_new_tokens=1, min_new_tokens=1,
        num_return_sequences=4000,
    )  # fmt: skip
    tokens = found.sequences[:, -1].view(2, 4000)
    for row in range(2):
        share = torch.bincount(tokens[row], minlength=50) / 4000
        expected = stablemax(allowed(found.logits[0][row * 4000, None]))[0]
        # five standard deviations
        limit = 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-3
        assert ((share - expected).abs() <= limit).all()
        assert expected.max() < 0.2 < allowed(found.logits[0][row * 4000, None]).softmax(-1).max()


def test_greedy_is_unchanged(llama):
    plain = generate(llama, do_sample=False, top_k=None)
    ours = generate(llama, StableMaxLogitsProcessor(), do_sample=False, top_k=None)
    assert torch.equal(plain.sequences, ours.sequences)


def test_penalties_come_before_and_temperature_after(llama):
    found = generate(
        llama, StableMaxLogitsProcessor(), temperature=0.5, repetition_penalty=1.3, top_k=7
    )
    seen = LLAMA.inputs("left")
    sequences = found.sequences
    length = seen["input_ids"].shape[1]
    for step, (scores, logits) in enumerate(zip(found.scores, found.logits, strict=True)):
        # the penalty: on the logits of tokens that have been there, padding left out
        penalised = logits.clone()
        for row in range(2):
            start = int(seen["attention_mask"][row].argmax())
            tokens = sequences[row, start : length + step].unique()
            values = logits[row, tokens]
            penalised[row, tokens] = torch.where(values < 0, values * 1.3, values / 1.3)
        mapped = stablemax_logits(allowed(penalised)) / 0.5
        least = mapped.topk(7).values[:, -1:]
        torch.testing.assert_close(scores, mapped.masked_fill(mapped < least, -INF))


def test_renormalised_scores_are_log_stablemax(llama):
    found = generate(llama, StableMaxLogitsProcessor(), renormalize_logits=True)
    for scores, logits in zip(found.scores, found.logits, strict=True):
        torch.testing.assert_close(scores, log_stablemax(allowed(logits)))


def test_beam_search_is_refused_with_the_way_out(llama):
    with pytest.raises(ValueError, match=r"log-probabilities.*stablemax_decoding\(model\)"):
        generate(
            llama, StableMaxLogitsProcessor(), num_beams=3, do_sample=False, top_k=None,
            min_new_tokens=None,
        )  # fmt: skip


def test_beam_search_inside_stablemax_decoding_adds_log_stablemax(llama):
    with stablemax_decoding(llama):
        found = generate(llama, num_beams=3, do_sample=False, top_k=None)
    plain = generate(llama, num_beams=3, do_sample=False, top_k=None)
    assert not torch.equal(found.sequences, plain.sequences)
    assert not llama._forward_hooks
    inputs = LLAMA.inputs("left")
    length = inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long)], dim=-1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = llama(found.sequences, attention_mask=mask, position_ids=positions).logits
    steps = log_stablemax(logits[:, length - 1 : -1])
    total = steps.gather(-1, found.sequences[:, length:, None]).squeeze(-1).sum(dim=-1)
    # generate divides by the number of new tokens
    torch.testing.assert_close(found.sequences_scores, total / 4, atol=1e-4, rtol=1e-4)


def test_stablemax_decoding_samples_as_the_processor_does(llama):
    ours = generate(llama, StableMaxLogitsProcessor())
    with stablemax_decoding(llama):
        inside = generate(llama)
    assert torch.equal(ours.sequences, inside.sequences)


# peft reads an attribute that transformers has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")
def test_stablemax_decoding_reaches_a_wrapped_model(llama):
    wrapped = get_peft_model(copy.deepcopy(llama), LoraConfig(target_modules=["q_proj"]))
    with stablemax_decoding(llama):
        expected = generate(llama, num_beams=3, do_sample=False, top_k=None)
    with stablemax_decoding(wrapped):
        found = generate(wrapped, num_beams=3, do_sample=False, top_k=None)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


def test_hook_goes_also_after_an_exception(llama):
    with pytest.raises(RuntimeError, match="ours"), stablemax_decoding(llama):
        raise RuntimeError("ours")
    assert not llama._forward_hooks
    without = pytest.raises(TypeError, match=r"LlamaModel is a \w+ without logits")
    with without, stablemax_decoding(llama.model):
        llama.model(**LLAMA.inputs())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_infinity_nan_and_batch(dtype):
    scores = torch.tensor([[-INF, 0.0, 3.0, -60.0], [1.0, 1.0, 1.0, 1.0]]).to(dtype)
    ids = torch.zeros(2, 1, dtype=torch.long)
    found = StableMaxLogitsProcessor()(ids, scores)
    assert found.dtype == dtype
    tolerance = (
        {"atol": 1e-2, "rtol": 1e-2} if dtype.itemsize == 2 else {"atol": 1e-7, "rtol": 1e-6}
    )
    torch.testing.assert_close(found.softmax(-1), stablemax(scores), **tolerance)
    assert found[0, 0] == -INF
    scores[1, 2] = float("nan")
    assert StableMaxLogitsProcessor()(ids, scores)[1].isnan().tolist() == [
        False,
        False,
        True,
        False,
    ]
    one_token = StableMaxLogitsProcessor()(ids[:1], torch.zeros(1, 1, dtype=dtype))
    assert one_token.tolist() == [[0.0]]
    empty = StableMaxLogitsProcessor()(ids[:0], torch.zeros(0, 4, dtype=dtype))
    assert empty.shape == (0, 4)
