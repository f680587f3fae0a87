"""The catalogue: one row for every published method that works here. Pure data, imports nothing
heavy."""

import difflib
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    title: str
    authors: str
    year: int
    arxiv: str


@dataclass(frozen=True)
class Method:
    """One row of the catalogue.

    Attributes:
        name: what the user types.
        family: what the method is: "attention" is a name for `attn_implementation=`,
            "quantization" a config for `quantization_config=`.
        summary: one line, no full stop.
        paper: the publication.
        path: "module:attribute" of the implementation.
        usage: the line of Python that switches it on.
        status: "stable" or "experimental".
        extra: the optional dependency group that it needs, if any.
    """

    name: str
    family: str
    summary: str
    paper: Paper
    path: str
    usage: str
    status: str = "stable"
    extra: str | None = None

    def load(self) -> Any:
        """Import and return the implementation."""
        module, _, attribute = self.path.partition(":")
        return getattr(importlib.import_module(module), attribute)


_SOFTPLUS = Paper(
    title=(
        "Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models"
    ),
    authors="Bo Gao, Michael W. Spratling",
    year=2025,
    arxiv="2501.13428",
)
_TWO_PASS = Paper(
    title="The Two-Pass Softmax Algorithm",
    authors="Marat Dukhan, Artsiom Ablavatski",
    year=2020,
    arxiv="2001.04438",
)
_BAQ = Paper(
    title="BAQ: Efficient Bit Allocation Quantization for Large Language Models",
    authors="Chao Zhang, Li Wang, Samson Lasaulce, Merouane Debbah",
    year=2025,
    arxiv="2506.05664",
)
_GROKKING = Paper(
    title="Grokking at the Edge of Numerical Stability",
    authors="Lucas Prieto, Melih Barsbey, Pedro A. M. Mediano, Tolga Birdal",
    year=2025,
    arxiv="2501.04697",
)
_SOFT = Paper(
    title="SOFT: Softmax-free Transformer with Linear Complexity",
    authors=(
        "Jiachen Lu, Jinghan Yao, Junge Zhang, Xiatian Zhu, Hang Xu, Weiguo Gao, Chunjing Xu, Tao "
        "Xiang, Li Zhang"
    ),
    year=2021,
    arxiv="2110.11945",
)
_SOFT_NORM = Paper(
    title="Softmax-free Linear Transformers",
    authors="Jiachen Lu, Junge Zhang, Xiatian Zhu, Jianfeng Feng, Tao Xiang, Li Zhang",
    year=2024,
    arxiv="2207.03341",
)

_ATTENTION = 'from_pretrained(..., attn_implementation="{}")'

CATALOG: tuple[Method, ...] = (
    Method(
        name="softplus",
        family="attention",
        summary="softplus of length-scaled cosine scores instead of exp (LSSA)",
        paper=_SOFTPLUS,
        path="hf_softext.attention.softplus:SOFTPLUS",
        usage=_ATTENTION.format("softplus"),
    ),
    Method(
        name="softplus_reweighted",
        family="attention",
        summary="softplus attention whose weights are sharpened by a power (LSSAR)",
        paper=_SOFTPLUS,
        path="hf_softext.attention.softplus:SOFTPLUS_REWEIGHTED",
        usage=_ATTENTION.format("softplus_reweighted"),
    ),
    Method(
        name="stablemax",
        family="attention",
        summary="StableMax of the scaled scores: linear instead of exponential growth",
        paper=_GROKKING,
        path="hf_softext.attention.stablemax:STABLEMAX",
        usage=_ATTENTION.format("stablemax"),
    ),
    Method(
        name="soft",
        family="attention",
        summary="Gaussian kernel of query and key, not normalised; low rank for images (SOFT)",
        paper=_SOFT,
        path="hf_softext.attention.soft:SOFT",
        usage=_ATTENTION.format("soft"),
    ),
    Method(
        name="soft_norm",
        family="attention",
        summary="Gaussian kernel, rows divided by their sum; low rank for images (SOFT++)",
        paper=_SOFT_NORM,
        path="hf_softext.attention.soft:SOFT_NORM",
        usage=_ATTENTION.format("soft_norm"),
    ),
    Method(
        name="perp_grad",
        family="optimizer",
        summary="takes out of every gradient what only changes the length of the weights",
        paper=_GROKKING,
        path="hf_softext.optim.perp_grad:perp_grad",
        usage="hf_softext.perp_grad(optimizer)",
    ),
    Method(
        name="two_pass_softmax",
        family="op",
        summary="softmax and log-sum-exp of long CPU rows in fewer passes over memory",
        paper=_TWO_PASS,
        path="hf_softext.ops:two_pass_softmax",
        usage="hf_softext.ops.two_pass_softmax(logits)",
        status="experimental",
    ),
    Method(
        name="baq",
        family="quantization",
        summary="columns of weights get the bits that lower the loss most, to any average",
        paper=_BAQ,
        path="hf_softext.quantization.baq.config:BaqConfig",
        usage="from_pretrained(..., quantization_config=BaqConfig(bits=2.5, dataset=...))",
    ),
)


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error message: the nearest known word if there is one, then all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."


def methods(family: str | None = None) -> list[Method]:
    """The rows of one family, or all of them."""
    return [row for row in CATALOG if family in (None, row.family)]


def find(name: str, family: str | None = None) -> Method:
    """The row called `name`.

    Raises:
        ValueError: no such row; the message suggests the nearest one.
    """
    rows = {row.name: row for row in methods(family)}
    if not isinstance(name, str) or name not in rows:
        kind = "method" if family is None else f"{family} method"
        raise ValueError(f"Unknown {kind} {name!r}.{did_you_mean(str(name), list(rows))}")
    return rows[name]
