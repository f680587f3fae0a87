"""Loss and passkeys at lengths beyond training, against models whose answers are known."""

import math

import pytest
import torch
import transformers as hf
from torch import nn

from hf_softext.training.causal_lm.byte_tokenizer import byte_tokenizer
from hf_softext.training.causal_lm.extrapolation import loss_by_length, passkey_accuracy
from hf_softext.training.causal_lm.passkey import PasskeyTask


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=257,
        bos_token_id=None,
        eos_token_id=None,
    )
    return hf.LlamaForCausalLM(config)


def test_loss_is_that_of_each_window_on_its_own_whatever_the_batch(llama):
    tokens = torch.randint(0, 257, (1000,), dtype=torch.int32)
    lengths = [63, 126, 252]
    llama.train()
    found = loss_by_length(llama, tokens, lengths)
    assert llama.training
    used = tokens[: 1000 // 252 * 252].long()
    for length in lengths:
        with torch.no_grad():
            losses = [llama(row, labels=row).loss for row in used.view(-1, 1, length)]
        assert found[length] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
    for batch_tokens in (1, 130, 10**6):
        other = loss_by_length(llama, tokens, lengths, batch_tokens=batch_tokens)
        assert other == pytest.approx(found, abs=1e-5)


def test_amount_cuts_the_text_but_leaves_a_longest_window(llama):
    tokens = torch.randint(0, 257, (1000,), dtype=torch.int32)
    small = loss_by_length(llama, tokens, [20, 100], amount=230)
    assert small == loss_by_length(llama, tokens[:200], [20, 100])
    assert loss_by_length(llama, tokens, [20, 100], amount=30) == loss_by_length(
        llama, tokens[:100], [20, 100]
    )
    for lengths in ([1, 20], [20, 1001]):
        with pytest.raises(ValueError, match=r"must be from 2 to the 1000 tokens"):
            loss_by_length(llama, tokens, lengths)


class Uniform(nn.Module):
    """Knows nothing: every token is as likely as the others."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, use_cache=None):
        return {"logits": self.nothing.expand(*input_ids.shape, 257)}


def test_a_model_that_knows_nothing_has_the_entropy_of_the_vocabulary():
    tokens = torch.randint(0, 257, (5000,), dtype=torch.int32)
    # longer than the positions that are widened at a time
    found = loss_by_length(Uniform(), tokens, [2, 1500, 3001])
    assert found == pytest.approx(dict.fromkeys([2, 1500, 3001], math.log(257)), abs=1e-6)


class Reader(nn.Module):
    """Finds the number again if its cue lies among the last `sight` tokens; wrong in one digit
    where it is told to be."""

    def __init__(self, task, sight, wrong_digit=None):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.task, self.sight, self.wrong_digit = task, sight, wrong_digit

    def forward(self, input_ids, use_cache=None):
        logits = torch.zeros(*input_ids.shape, 257)
        cue = torch.tensor(self.task.cue)
        for row, ids in enumerate(input_ids):
            starts = (ids.unfold(0, len(cue), 1) == cue).all(dim=1).nonzero().flatten() + len(cue)
            first, second = starts.tolist()
            for digit in range(5):
                position = second + digit - 1
                seen = first - len(cue) > position - self.sight
                if seen and digit != self.wrong_digit:
                    logits[row, position, ids[first + digit]] = 1
        return {"logits": logits}


def test_passkeys_count_when_every_digit_is_right():
    tokenizer = byte_tokenizer()
    task = PasskeyTask.of(tokenizer)
    tokens = torch.randint(97, 123, (3000,), dtype=torch.int32)
    given = {"lengths": [64, 256], "depths": [0.0, 0.5, 1.0], "samples": 7}
    everything = passkey_accuracy(Reader(task, 10**6), tokens, task, **given)
    assert [(x.length, x.depth) for x in everything] == [
        (length, depth) for length in (64, 256) for depth in (0.0, 0.5, 1.0)
    ]
    assert all(x.accuracy == 1 and x.windows == 7 for x in everything)
    near = passkey_accuracy(Reader(task, 100), tokens, task, **given)
    assert [x.accuracy for x in near] == [1, 1, 1, 0, 0, 1]
    assert near == passkey_accuracy(Reader(task, 100), tokens, task, batch_tokens=600, **given)
    for digit in (0, 4):
        wrong = passkey_accuracy(Reader(task, 10**6, digit), tokens, task, **given)
        assert all(x.accuracy == 0 for x in wrong)
