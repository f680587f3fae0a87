"""A classification head on random features."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_softext.adapters.snnk._common import check_size
from hf_softext.adapters.snnk.random_features import RandomFeatures

CONFIG, WEIGHTS = "snnk_head.json", "snnk_head.safetensors"

# what is written of a head, and the types that are read back
_FIELDS: dict[str, tuple[type, ...]] = {
    "hidden": (int,),
    "num_labels": (int,),
    "num_features": (int,),
    "kernel": (str,),
    "bias": (bool,),
    "orthogonal": (bool,),
    "floor": (float, int),
    "normalize": (float, int, type(None)),
    "seed": (int,),
    "dropout": (float, int),
    "first_token": (bool,),
}


class SnnkHead(nn.Module):
    r"""Logits $W \phi(x) + b$ from fixed random features of a hidden state.

        model.classifier = SnnkHead(model.config.hidden_size, model.config.num_labels)
        fit_closed_form(model, dataloader)

    `out`, a `torch.nn.Linear`, is all that is trained, by gradients like any head or by
    `fit_closed_form` in one pass.

    Args:
        hidden: D, the width of the hidden state.
        num_labels: C.
        num_features: R, 2048. The more, the more accurate and the slower: the sums of a closed
            form take R² numbers in float64. The authors' head has 512.
        kernel: "relu" (the default), "linear", "cos" or "sin", which for a head are the same.
        bias: whether the features see a 1 behind x, which lets their kinks lie anywhere; True.
            "cos" and "sin" have no need of it.
        orthogonal: as in `RandomFeatures`, True.
        floor: of the features of "relu", 0.
        normalize: the length that x is scaled to, "unit" (1, the default) or a number, None to
            leave it. The longer, the narrower the kernel: exp(x·x') for "cos", for which more than
            1 needs very many features.
        seed: of the fixed projection, 0.
        dropout: of the features in training, 0; the authors have 0.1.
        first_token: take x[:, 0] of a sequence (B, T, D), as the heads of RoBERTa and ELECTRA do,
            whose `classifier` is given all tokens; False.

    Attributes:
        features: fixed; `features.projection` is saved with the head.
        out: W, (C, R), and b, (C,).

    Raises:
        ValueError: a value that is not allowed, or an input of another width.

    Notes:
        A model that was saved with such a head is loaded in two steps, as `from_pretrained` builds
        the model's own head and leaves it untrained, with a warning: load it, then replace its head
        by `SnnkHead.from_pretrained(folder)`.

    Reference:
        Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii Likhosherstov,
        "Scalable Neural Network Kernels", 2024, arXiv 2310.13225, from the authors' code: the
        bundled pooler, with the kernel "relu" instead of their exponential features and a bias.
    """

    def __init__(
        self,
        hidden: int,
        num_labels: int,
        num_features: int = 2048,
        kernel: str = "relu",
        *,
        bias: bool = True,
        orthogonal: bool = True,
        floor: float = 0.0,
        normalize: float | str | None = "unit",
        seed: int = 0,
        dropout: float = 0.0,
        first_token: bool = False,
    ):
        super().__init__()
        check_size("num_labels", num_labels)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout!r}: give a share of at least 0 and below 1.")
        self.features = RandomFeatures(
            hidden,
            num_features,
            kernel,
            bias=bias,
            orthogonal=orthogonal,
            floor=floor,
            normalize=normalize,
            seed=seed,
        )
        self.dropout = nn.Dropout(dropout)
        self.first_token = first_token
        self.out = nn.Linear(num_features, num_labels)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Logits.

        Args:
            x: (..., D); (B, T, D) with `first_token`.
            **kwargs: of heads that are given more, which is not used.

        Returns:
            (..., C), or (B, C), of the dtype of `out`.
        """
        if self.first_token:
            if x.dim() != 3:
                raise ValueError(
                    f"first_token=True takes sequences (B, T, {self.features.in_features}), and "
                    f"the input has shape {tuple(x.shape)}: give first_token=False."
                )
            x = x[:, 0]
        features = self.dropout(self.features(x))
        return self.out(features.to(self.out.weight.dtype))

    def config(self) -> dict[str, Any]:
        """The arguments that make such a head."""
        found: dict[str, Any] = {
            "hidden": self.features.in_features,
            "num_labels": self.out.out_features,
            "dropout": self.dropout.p,
            "first_token": self.first_token,
        }
        for name in _FIELDS:
            if name not in found:
                found[name] = getattr(self.features, name)
        return {name: found[name] for name in _FIELDS}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `snnk_head.json` and `snnk_head.safetensors`.

        Args:
            folder: is made if it is not there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        save_file(state, folder / f"{WEIGHTS}.tmp")
        text = json.dumps(self.config(), indent=2) + "\n"
        (folder / f"{CONFIG}.tmp").write_text(text, encoding="utf-8")
        # the file that says that there is a head comes last
        for name in (WEIGHTS, CONFIG):
            os.replace(folder / f"{name}.tmp", folder / name)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "SnnkHead":
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: there is no head.
            ValueError: one that is damaged, or that says what it cannot.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}: there is no SnnkHead in it.")
        try:
            said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            state = load_file(folder / WEIGHTS)
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise ValueError(
                f"the head in {folder} is damaged ({error}): fetch it again."
            ) from error
        given = _checked(said, folder / CONFIG)
        # before anything of a size that only the text says is made
        stored = [*state.get("out.weight", torch.empty(0)).shape]
        stored += state.get("features.projection", torch.empty(0)).shape[1:]
        sizes = [given[name] for name in ("num_labels", "num_features", "hidden")]
        if stored not in (sizes, [*sizes[:2], sizes[2] + 1]):
            raise ValueError(f"{folder / WEIGHTS} holds another head than {CONFIG} says.")
        head = cls(
            given["hidden"],
            given["num_labels"],
            given["num_features"],
            given["kernel"],
            bias=given["bias"],
            orthogonal=given["orthogonal"],
            floor=given["floor"],
            normalize=given["normalize"],
            seed=given["seed"],
            dropout=given["dropout"],
            first_token=given["first_token"],
        )
        shapes = {name: value.shape for name, value in head.state_dict().items()}
        if shapes != {name: value.shape for name, value in state.items()}:
            raise ValueError(f"{folder / WEIGHTS} holds another head than {CONFIG} says.")
        head.out.to(state["out.weight"].dtype)
        head.load_state_dict(state)
        return head.eval()


def _checked(said: Any, path: Path) -> dict[str, Any]:
    """The fields of a head, each of its type."""
    if not isinstance(said, dict) or said.keys() != _FIELDS.keys():
        raise ValueError(f"{path} must hold {', '.join(_FIELDS)} and nothing else.")
    for name, kinds in _FIELDS.items():
        if not isinstance(said[name], kinds) or (
            isinstance(said[name], bool) and bool not in kinds
        ):
            raise ValueError(f"{path} says {name}={said[name]!r}, which is no such value.")
    return said
