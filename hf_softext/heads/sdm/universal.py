"""The author's earlier estimator, with a learned rescaling of the outputs.

The activation, the adaptor and its training are those of the later one, and so is the choice of the
split, where the earlier paper takes the one with the highest median similarity.
"""

import math
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_softext.functional.empirical_cdf import ClassLists, count_below
from hf_softext.functional.sdm import BASE_OFFSET, sdm
from hf_softext.heads.sdm.bounds import effective_sample_size, sample_size_error
from hf_softext.heads.sdm.canonical import inside, of_class
from hf_softext.heads.sdm.region import Region


class Rescaling(NamedTuple):
    r"""What the earlier estimator adds.

    Attributes:
        lists: outputs of the calibration rows of every true class, of that class.
        weight: (C, C), $W''$.
        offsets: (C, T), what is taken off the output of a predicted class at each whole similarity.
    """

    lists: ClassLists
    weight: Tensor
    offsets: Tensor


def output_quantiles(lists: ClassLists, probs: Tensor) -> Tensor:
    """(B, C), v: the share of each class's calibration rows with a lower output; 1 from the highest
    on, and 0 for a class without rows."""
    sizes = lists.sizes
    share = count_below(lists, probs) / sizes.clamp(min=1)
    last = (lists.offsets[1:] - 1).clamp(min=0)
    highest = torch.where(sizes > 0, lists.values[last], torch.inf) if len(lists.values) else sizes
    return torch.where((probs >= highest) & (sizes > 0), 1.0, share)


def rescale(
    quantiles: Tensor, similarity: Tensor, prediction: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""$\tilde q = v_{\hat y}\ln(2+q)$ and $o = \mathrm{softmax}(\ln(2+\tilde q)\,W'' v)$.

    Args:
        quantiles: (B, C), v.
        similarity: (B,), q.
        prediction: (B,), int64.
        weight: (C, C).

    Returns:
        (B,), $\tilde q$; (B, C), o; (B,), bool, whether the largest output is another class's.
    """
    scaled = of_class(quantiles, prediction) * (BASE_OFFSET + similarity).log()
    with torch.autocast(quantiles.device.type, enabled=False):
        outputs = sdm(quantiles @ weight.T, scaled, torch.ones_like(scaled))
    return scaled, outputs, outputs.argmax(1) != prediction


def train_rescaling(
    quantiles: Tensor,
    similarity: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    epochs: int,
    patience: int,
    learning_rate: float,
    batch_size: int,
    progress: bool = False,
) -> Tensor:
    r"""$W''$, by Adam on $-\log_{2+\tilde q} o_y$ of the calibration rows.

    Args:
        quantiles: (N, C), v.
        similarity: (N,), $\tilde q$.
        labels: (N,), int64.
        generator: of weights and order.
        epochs: at most so many.
        patience: after more epochs in a row above the best, it ends.
        learning_rate: of Adam.
        batch_size: rows a step.
        progress: whether to show a bar.

    Returns:
        (C, C), of the epoch with the lowest mean loss.
    """
    rows, classes = quantiles.shape
    drawn = torch.rand((classes, classes), generator=generator)
    weight = ((2 * drawn - 1) / math.sqrt(classes)).to(quantiles)
    target = torch.nn.functional.one_hot(labels, classes).to(quantiles)
    log_base = (BASE_OFFSET + similarity).log().unsqueeze(1)
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    best, best_loss, worse, step = weight.clone(), math.inf, 0, 0
    for _ in tqdm(range(epochs), desc="rescaling", unit="epoch", disable=not progress, leave=False):
        total = 0.0
        order = torch.randperm(rows, generator=generator).to(labels.device)
        for part in order.split(batch_size):
            v, wanted, base = quantiles[part], target[part], log_base[part]
            log_output = torch.log_softmax(base * (v @ weight.T), 1)
            total -= float((log_output * wanted / base).sum())
            # the logarithm of the base cancels in the gradient: no graph is needed for so small a
            # step, of which there are millions
            gradient = (log_output.exp() - wanted).T @ v / len(part)
            step += 1
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            root = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
            weight = weight - learning_rate / (1 - 0.9**step) * first / root
        if total < best_loss:
            best, best_loss, worse = weight.clone(), total, 0
        elif total > best_loss:
            worse += 1
            if worse > patience:
                break
        else:
            worse = 0
    return best


def bin_medians(
    outputs: Tensor, similarity: Tensor, is_ood: Tensor, prediction: Tensor, bins: int
) -> Tensor:
    """(C, T): the median output of the predicted class among rows of each whole similarity.

    Rows out of distribution count at 0; NaN where there are none.
    """
    found = torch.full((outputs.shape[1], bins), torch.nan)
    chosen = of_class(outputs, prediction)
    whole = similarity.floor().long().masked_fill(is_ood, 0).clamp(max=bins - 1)
    for label, level in {*zip(prediction.tolist(), whole.tolist(), strict=True)}:
        values = chosen[(prediction == label) & (whole == level)]
        found[label, level] = median(values.tolist())
    return found.to(outputs.device)


def spread_over_splits(best: float, each: list[float], alpha: float) -> float:
    r"""$\tilde q_{min} + \gamma \tan(\pi(\alpha - 1/2))$: a quantile of a Cauchy distribution.

    Args:
        best: of the split that is kept.
        each: of every split.
        alpha: the quantile.

    Returns:
        `best` where the spread is not finite, as in the authors' code.
    """
    shift = _cauchy(each, alpha)
    return best + shift if math.isfinite(shift) else best


def offsets_over_splits(medians: Tensor, alpha: float) -> Tensor:
    """(J, C, T) to (C, T): the same with location 0, of the medians of each cell; 0 where no split
    has rows."""
    found = torch.zeros(medians.shape[1:])
    for label, level in (~medians.isnan()).any(0).nonzero().tolist():
        values = medians[:, label, level]
        shift = _cauchy(values[~values.isnan()].tolist(), alpha)
        found[label, level] = shift if math.isfinite(shift) else 0.0
    return found.to(medians.device)


def _cauchy(values: list[float], alpha: float) -> float:
    """Median absolute deviation, times the quantile of a standard Cauchy distribution."""
    middle = median(values)
    deviation = median([abs(value - middle) for value in values])
    return deviation * math.tan(math.pi * (alpha - 0.5)) if deviation else 0.0


def judge(
    logits: Tensor,
    similarity: Tensor,
    distance: Tensor,
    lists: ClassLists,
    region: Region,
    alpha: float,
    rescaling: Rescaling,
) -> dict[str, Tensor]:
    r"""As `canonical.judge`, with rescaled outputs; arguments as there, and in the region's least
    similarity the spread over splits.

    The bounds move the quantiles: $v_{\hat y} - \epsilon_{\hat y}$ and $v_c + \epsilon_c$ for the
    lower one, the other way round for the upper, kept within [0, 1]. d keeps its value.

    Reference:
        A. Schmaltz, "Similarity-Distance-Magnitude Universal Verification", 2025, arXiv 2502.20167.
    """
    prediction = logits.argmax(1)
    quantiles = output_quantiles(rescaling.lists, sdm(logits, similarity, distance))
    q, probs = _bounded(quantiles, similarity, prediction, rescaling)
    size = effective_sample_size(lists, q)
    error = sample_size_error(size, alpha)
    chosen = torch.nn.functional.one_hot(prediction, logits.shape[1]).bool()
    away = torch.where(chosen, -error, error)
    found = {}
    for name, sign in (("lower", 1), ("upper", -1)):
        moved = (quantiles + sign * away).clamp(0, 1)
        found[name] = _bounded(moved, similarity, prediction, rescaling)
    q_lower, probs_lower = found["lower"]
    is_ood = q.floor() <= 0
    return {
        "probs": probs,
        "rescaled_similarity": q,
        "is_ood": is_ood,
        "admit": inside(region, q, probs, prediction) & ~is_ood,
        "admit_lower": inside(region, q_lower, probs_lower, prediction) & (q_lower.floor() > 0),
        "effective_sample_size": size,
        "d_lower": distance,
        "d_upper": distance,
        "probs_lower": probs_lower,
        "probs_upper": found["upper"][1],
        "rescaled_similarity_lower": q_lower,
    }


def _bounded(
    quantiles: Tensor, similarity: Tensor, prediction: Tensor, rescaling: Rescaling
) -> tuple[Tensor, Tensor]:
    """Similarity, 0 where the prediction flips, and outputs less the offset."""
    q, outputs, flipped = rescale(quantiles, similarity, prediction, rescaling.weight)
    q = q.masked_fill(flipped, 0.0)
    level = q.floor().long().clamp(max=rescaling.offsets.shape[1] - 1)
    lowered = (of_class(outputs, prediction) - rescaling.offsets[prediction, level]).clamp(0, 1)
    return q, outputs.scatter(1, prediction.unsqueeze(1), lowered.unsqueeze(1))
