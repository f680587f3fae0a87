"""A small language model adds two numbers, and a verifier says which sums may be relied on.

    python examples/verified_addition.py            # some minutes on a CPU
    python examples/verified_addition.py --seeds 0 1 2

A model of some 100,000 parameters learns "23+45=68" from part of the sums of numbers below 100. Its
answers to other sums, right and wrong, fit the verifier; on sums that neither has seen it is asked
which answers to admit. Beside it: the model's own mean probability of its tokens, with a threshold
that keeps the accuracy asked for on the verifier's rows, and at the verifier's share of admitted
answers; and a logistic regression on the same features, admitted where it is sure enough.
"""

import argparse
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from hf_softext.functional import logistic_regression
from hf_softext.heads.features import extract_features
from hf_softext.heads.sdm.verifier import SdmVerifier

CHARACTERS = ["<pad>", "<eos>", *"0123456789+="]


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    train: int = 700
    fit: int = 4000
    test: int = 3000
    steps: int = 600
    width: int = 64
    epochs: int = 60


def tokenizer() -> Any:
    """A token for each character."""
    vocabulary = {character: number for number, character in enumerate(CHARACTERS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def sums(seed: int) -> list[tuple[int, int]]:
    """All pairs of numbers below 100, in random order."""
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(pairs)
    return pairs


def train(pairs: list[tuple[int, int]], words: Any, sizes: Sizes, seed: int) -> Any:
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
    asked = (ids == CHARACTERS.index("=")).long().cumsum(1) - (ids == CHARACTERS.index("=")).long()
    labels = ids.masked_fill((mask == 0) | (asked == 0), -100)
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


@torch.no_grad()
def answer(model: Any, words: Any, prompts: list[str]) -> tuple[list[str], np.ndarray]:
    """Greedy answers, and the mean probability that the model gave to their tokens."""
    batch = words(prompts, return_tensors="pt", padding=True)
    found = model.generate(
        **batch, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    tokens = found.sequences[:, batch["input_ids"].shape[1] :]
    probs = torch.stack(found.scores, 1).softmax(-1).gather(2, tokens[..., None])[..., 0]
    kept = (tokens != 0).float()
    sure = (probs * kept).sum(1) / kept.sum(1)
    return words.batch_decode(tokens, skip_special_tokens=True), sure.numpy()


def measure(seed: int, alpha: float, sizes: Sizes) -> dict[str, tuple[float, float]]:
    """Accuracy and share of the admitted answers, for every way to admit them."""
    words, pairs = tokenizer(), sums(seed)
    model = train(pairs[: sizes.train], words, sizes, seed)
    rest = pairs[sizes.train :]
    fit, test = rest[: sizes.fit], rest[sizes.fit : sizes.fit + sizes.test]
    answers = {}
    for name, part in (("fit", fit), ("test", test)):
        prompts = [f"{a}+{b}=" for a, b in part]
        texts, sure = answer(model, words, prompts)
        # an answer that ended at once
        texts = [text.replace(" ", "") or "<eos>" for text in texts]
        right = np.array([text == str(a + b) for text, (a, b) in zip(texts, part, strict=True)])
        answers[name] = prompts, texts, sure, right
    prompts, texts, sure, right = answers["fit"]
    verifier = SdmVerifier.fit(
        model, words, prompts, texts, right, alpha=alpha, epochs=sizes.epochs, seed=seed
    )
    asked, told, test_sure, test_right = answers["test"]
    verdicts = verifier.verify(asked, told, exemplars=0)
    admitted = np.array([verdict.admit for verdict in verdicts])
    lower = np.array([verdict.admit_lower for verdict in verdicts])

    rows = [
        [{"input_ids": words(p + t)["input_ids"]} for p, t in zip(*one, strict=True)]
        for one in ((prompts, texts), (asked, told))
    ]
    x, x_test = (
        extract_features(model, None, r, pooling="last_mean", progress=False) for r in rows
    )
    weight, bias = logistic_regression(x, torch.from_numpy(right).long(), 2)
    probs = (x_test.double() @ weight.T + bias).softmax(1)[:, 1].numpy()

    def of(admit: np.ndarray) -> tuple[float, float]:
        accuracy = test_right[admit].mean() if admit.any() else float("nan")
        return float(accuracy), float(admit.mean())

    least = np.sort(test_sure)[::-1][max(int(admitted.sum()) - 1, 0)]
    return {
        "all answers": of(np.ones(len(told), dtype=bool)),
        "verifier": of(admitted),
        "verifier, lower bound": of(lower),
        "mean token probability, threshold from the same rows": of(
            test_sure >= _threshold(sure, right, alpha)
        ),
        "mean token probability, the verifier's share": of(
            test_sure >= least if admitted.any() else np.zeros(len(told), dtype=bool)
        ),
        "logistic regression at alpha": of(probs >= alpha),
    }


def _threshold(sure: np.ndarray, right: np.ndarray, alpha: float) -> float:
    """The lowest that keeps a share alpha of the answers right; infinity where none does."""
    order = np.argsort(-sure)
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.nonzero(share >= alpha)[0]
    return float(sure[order][enough[-1]]) if len(enough) else float("inf")


def main(words: list[str] | None = None, sizes: Sizes | None = None) -> dict[str, list]:
    """Run the seeds, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--alpha", type=float, default=0.95)
    args = parser.parse_args(words)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in args.seeds:
        for name, pair in measure(seed, args.alpha, sizes or Sizes()).items():
            found.setdefault(name, []).append(pair)
    print(f"\nalpha {args.alpha}, seeds {args.seeds}: accuracy / share admitted")
    for name, pairs in found.items():
        cells = ["nothing" if np.isnan(a) else f"{a:.3f} / {s:.3f}" for a, s in pairs]
        print(f"{name:55} {'   '.join(cells)}")
    return found


if __name__ == "__main__":
    main()
