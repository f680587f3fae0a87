"""A small language model adds two numbers, and a verifier says which answers may be relied on.

    python examples/verified_addition.py                  # a minute on a CPU
    python examples/verified_addition.py --seeds 0 1 2 --alpha 0.85

A model of 100,000 weights learns "23+45=68" from sums of two numbers below 100, few of which carry,
so that it is often wrong where one has to. Its answers to other sums, right and wrong, fit the
verifier; on sums that neither has seen it is asked which answers to admit. A sceptic asks what that
is worth beside something simpler on the same rows: the mean probability of the answer's tokens,
above a threshold that holds the accuracy on the verifier's rows, or admitting as many answers as
the verifier; and a logistic regression on the same hidden states. Last, numbers of three digits,
which the model never saw and never gets right: the fewer admitted the better.
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from hf_softext import SdmVerifier, extract_features, generate_verified
from hf_softext.functional import logistic_regression

CHARACTERS = ["<pad>", "<eos>", *"0123456789+="]
GREEDY = {"max_new_tokens": 5, "do_sample": False}
SAMPLED = {"max_new_tokens": 5, "do_sample": True}
Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Sizes:
    """How much is done: sums without and with a carry to train on, sums to fit and to test on, and
    how long."""

    plain: int = 2500
    carried: int = 150
    fit: int = 4000
    test: int = 2000
    steps: int = 600
    width: int = 64
    epochs: int = 60


def tokenizer() -> Any:
    """A token for each character."""
    vocabulary = {character: number for number, character in enumerate(CHARACTERS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    # no space between the tokens of an answer
    inner.decoder = decoders.Fuse()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def divide(seed: int, sizes: Sizes) -> tuple[Pairs, Pairs, Pairs]:
    """Sums to train on, to fit the verifier on, and to test on; none is in two of them."""
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(pairs)
    carried = [pair for pair in pairs if pair[0] % 10 + pair[1] % 10 > 9]
    plain = [pair for pair in pairs if pair[0] % 10 + pair[1] % 10 < 10]
    train = plain[: sizes.plain] + carried[: sizes.carried]
    seen = set(train)
    rest = [pair for pair in pairs if pair not in seen]
    return train, rest[: sizes.fit], rest[sizes.fit : sizes.fit + sizes.test]


def train(pairs: Pairs, words: Any, sizes: Sizes, seed: int) -> Any:
    """A language model that has seen these sums; only the answers count."""
    torch.manual_seed(seed)
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=len(CHARACTERS),
            hidden_size=sizes.width,
            intermediate_size=2 * sizes.width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    batch = words([f"{a}+{b}={a + b}<eos>" for a, b in pairs], return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    equals = (ids == CHARACTERS.index("=")).long()
    labels = ids.masked_fill((mask == 0) | (equals.cumsum(1) - equals == 0), -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=sizes.steps)
    model.train()
    for _ in range(sizes.steps):
        rows = torch.randint(len(ids), (128,))
        loss = model(input_ids=ids[rows], attention_mask=mask[rows], labels=labels[rows]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def questions(pairs: Pairs) -> list[str]:
    """What the model is asked."""
    return [f"{a}+{b}=" for a, b in pairs]


def is_right(texts: list[str], pairs: Pairs) -> np.ndarray:
    """Which answers are the sums."""
    return np.array([text == str(a + b) for text, (a, b) in zip(texts, pairs, strict=True)])


@torch.no_grad()
def answer(model: Any, words: Any, pairs: Pairs) -> tuple[list[str], np.ndarray]:
    """Greedy answers, and the mean probability that the model gave to their tokens."""
    batch = words(questions(pairs), return_tensors="pt", padding=True)
    found = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_scores=True)
    tokens = found.sequences[:, batch["input_ids"].shape[1] :]
    probs = torch.stack(found.scores, 1).softmax(-1).gather(2, tokens[..., None])[..., 0]
    kept = (tokens != 0).float()
    sure = (probs * kept).sum(1) / kept.sum(1)
    return words.batch_decode(tokens, skip_special_tokens=True), sure.numpy()


def states(model: Any, words: Any, pairs: Pairs, texts: list[str]) -> torch.Tensor:
    """The hidden states that the verifier looks at."""
    asked = zip(questions(pairs), texts, strict=True)
    rows = [{"input_ids": words(prompt + (text or "<eos>"))["input_ids"]} for prompt, text in asked]
    return extract_features(model, None, rows, pooling="last_mean", progress=False)


def threshold(sure: np.ndarray, right: np.ndarray, alpha: float) -> float:
    """The lowest that keeps a share alpha of the answers right; infinity where none does."""
    order = np.argsort(-sure)
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.nonzero(share >= alpha)[0]
    return float(sure[order][enough[-1]]) if len(enough) else float("inf")


def measure(seed: int, alpha: float, sizes: Sizes) -> dict[str, tuple[float, float, float]]:
    """For every way to admit answers: their accuracy, their share, and the share of sums with three
    digits that it admits, all of which are wrong."""
    words = tokenizer()
    parts = divide(seed, sizes)
    model = train(parts[0], words, sizes, seed)
    fit, test = parts[1:]
    texts, sure = answer(model, words, fit)
    right = is_right(texts, fit)
    verifier = SdmVerifier.fit(
        model,
        words,
        questions(fit),
        texts,
        right.tolist(),
        alpha=alpha,
        epochs=sizes.epochs,
        exemplar_dim=32,
        learning_rate=1e-2,
        seed=seed,
    )
    features = states(model, words, fit, texts)
    weight, bias = logistic_regression(features, torch.from_numpy(right).long(), 2)

    draw = random.Random(seed)
    strange = [(draw.randint(100, 999), draw.randint(0, 99)) for _ in range(sizes.test // 2)]
    told, likely, logistic, correct = {}, {}, {}, {}
    for name, pairs in (("test", test), ("strange", strange)):
        told[name] = generate_verified(model, verifier, questions(pairs), **GREEDY)
        said, likely[name] = answer(model, words, pairs)
        assert said == [one.text for one in told[name]]
        correct[name] = is_right(said, pairs)
        logits = states(model, words, pairs, said).double() @ weight.T + bias
        logistic[name] = logits.softmax(1)[:, 1].numpy()

    enough = threshold(sure, right, alpha)
    admitted = sum(one.verdict.admit for one in told["test"])
    same = np.sort(likely["test"])[::-1][admitted - 1] if admitted else np.inf
    ways: dict[str, Callable[[str], np.ndarray]] = {
        "all answers": lambda part: np.ones(len(told[part]), dtype=bool),
        "verifier": lambda part: np.array([one.verdict.admit for one in told[part]]),
        "verifier, lower bound": lambda part: np.array(
            [one.verdict.admit_lower for one in told[part]]
        ),
        "mean token probability, same rows": lambda part: likely[part] >= enough,
        "mean token probability, as many": lambda part: likely[part] >= same,
        "logistic regression at alpha": lambda part: logistic[part] >= alpha,
    }
    found = {}
    for name, way in ways.items():
        admit = way("test")
        accuracy = correct["test"][admit].mean() if admit.any() else float("nan")
        found[name] = (float(accuracy), float(admit.mean()), float(way("strange").mean()))
    # answers that are sampled until one is admitted, which are others than those of the fit
    torch.manual_seed(seed)
    again = generate_verified(
        model, verifier, questions(test), num_candidates=4, on_reject="resample", **SAMPLED
    )
    admit = np.array([one.verdict.admit for one in again])
    right = is_right([one.text or "" for one in again], test)
    accuracy = right[admit].mean() if admit.any() else float("nan")
    found["verifier, up to 5 samples"] = (float(accuracy), float(admit.mean()), float("nan"))
    return found


def main(words: list[str] | None = None, sizes: Sizes | None = None) -> dict[str, list]:
    """Run the seeds, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--alpha", type=float, default=0.9)
    args = parser.parse_args(words)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in args.seeds:
        for name, row in measure(seed, args.alpha, sizes or Sizes()).items():
            found.setdefault(name, []).append(row)
    print(f"\nalpha {args.alpha}, seeds {args.seeds}: accuracy, share admitted; three digits")
    for name, rows in found.items():
        cells = [
            ("nothing" if np.isnan(accuracy) else f"{accuracy:.3f} {share:.3f}").ljust(11)
            + ("" if np.isnan(strange) else f"; {strange:.3f}")
            for accuracy, share, strange in rows
        ]
        print(f"{name:35} {'   '.join(cells)}")
    return found


if __name__ == "__main__":
    main()
