"""What a user says about an SNNK adapter."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from peft.config import PeftConfig
from peft.utils.peft_types import PeftType

from hf_softext.adapters.snnk._common import (
    check_kernel,
    check_seed,
    check_size,
    input_length,
)
from hf_softext.adapters.snnk.card import add_note
from hf_softext.adapters.snnk.checkpoint import check_weights
from hf_softext.adapters.snnk.kernels import KERNELS


@dataclass
class SnnkConfig(PeftConfig):
    r"""Adapters made of scalable neural network kernels, for `peft.get_peft_model`.

    A target module's output y becomes $y + \gamma \odot V \phi(h)$: fixed random features $\phi$ of
    h, of which there are `num_features`, and a trained readout V, (O, R), with a trained gate
    $\gamma$, (O,), that starts at 0. h is y itself, or the module's input where the placement is
    parallel. That is O (R + 1) trained numbers for a module with O outputs.

    Args:
        num_features: R, 16. For "cos" and "sin" an even number. The authors' scripts have 8 for
            GLUE and 64 for images.
        kernel: "relu" (the default), whose features are max(G h, floor) / sqrt(R); "linear", the
            one that can be merged; "cos" or "sin", whose V starts such that V φ(h) estimates the
            cosine or sine of a random linear map, after which the two are the same.
        placement: "parallel" (the default, as it had the lower loss at equal parameters, see
            `docs/adapters.md`) or "serial", the authors'. `kernel="linear"` did as well there.
        down_sample: r. Instead of the gate, $U V \phi(h) + u$ is added, V (r, R), with U (O, r) and
            u (O,) that start at 0. None by default.
        orthogonal: whether the rows of the fixed projection G are orthogonal, in blocks, which
            lowers the variance; True.
        floor: of the features of "relu", 0. The authors' -5 lets most negative values through.
        normalize: the length that each h is scaled to: a number, "unit" for 1, None to leave it as
            it is, "auto" (the default) for 1 with "cos" and "sin" and for None with the others.
        projection_seed: G follows from this and the module's name, 0.
        save_projection: whether G is saved with the adapter; True. Else it is drawn again when the
            adapter is loaded, and compared with a fingerprint of R numbers; the file is about half
            as large.
        init_weights: False starts gate, or U, at random, and so changes what the model computes.
        target_modules: names or ends of names of linear layers, a regular expression, or
            "all-linear"; by default what attention and the feed-forward block put out, for the
            model types in `targets.TARGETS`.
        exclude_modules: names, ends of names or a regular expression of those that are left out.
        layers_to_transform: numbers of the layers that are adapted; needs a list of targets.
        layers_pattern: name of the list of layers, where it is not the usual one.
        modules_to_save: names of modules that are trained and saved in full, such as a head.

    Raises:
        ValueError: a value that is not allowed, or two that do not go together.

    Notes:
        The authors' order is dense, dropout, adapter; around a wrapped layer it is dense, adapter,
        dropout. They start U at random; here every adapter starts as the identity.

    Reference:
        Arijit Sehanobish, Krzysztof Choromanski, Yunfan Zhao, Avinava Dubey, Valerii Likhosherstov,
        "Scalable Neural Network Kernels", 2024, arXiv 2310.13225. From the abstract and the
        authors' code; the linear kernel, parallel placement of the gated form and the fingerprint
        are ours.
    """

    num_features: int = field(default=16, metadata={"help": "Random features for each module."})
    kernel: str = field(default="relu", metadata={"help": f"One of {', '.join(KERNELS)}."})
    placement: str = field(default="parallel", metadata={"help": "serial or parallel."})
    down_sample: int | None = field(
        default=None, metadata={"help": "Width of a second bottleneck instead of a gate."}
    )
    orthogonal: bool = field(default=True, metadata={"help": "Orthogonal rows of the projection."})
    floor: float = field(default=0.0, metadata={"help": "Lower bound of the features of relu."})
    normalize: float | str | None = field(
        default="auto", metadata={"help": "Length of the inputs: a number, unit, auto or nothing."}
    )
    projection_seed: int = field(default=0, metadata={"help": "Seed of the fixed projection."})
    save_projection: bool = field(default=True, metadata={"help": "Save the fixed projection."})
    init_weights: bool = field(default=True, metadata={"help": "Start as the identity."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Linear layers to adapt."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Linear layers to leave out."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the layers to adapt."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of layers."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved in full."}
    )

    # the local folder that it was read from, see `from_pretrained`; not a field
    came_from = cast(Path | None, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["SNNK"]
        for name in ("orthogonal", "save_projection", "init_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: give True or False.")
        if self.placement not in ("serial", "parallel"):
            raise ValueError(f'placement={self.placement!r}: give "serial" or "parallel".')
        check_kernel(self.kernel, self.num_features, self.floor)
        if self.down_sample is not None:
            check_size("down_sample", self.down_sample)
        check_seed("projection_seed", self.projection_seed)
        if self.normalize != "auto":
            input_length(self.normalize)
        self._check_targets()

    def __setattr__(self, name: str, value: Any) -> None:
        # what peft sets first of all where it loads an adapter, and nowhere before it makes one
        if name == "inference_mode" and self.came_from is not None:
            check_weights(self.came_from, self._parts())
        super().__setattr__(name, value)

    @property
    def length(self) -> float | None:
        """What the inputs are normalised to, or None."""
        if self.normalize == "auto":
            return KERNELS[self.kernel].length
        return input_length(self.normalize)

    @property
    def mergeable(self) -> bool:
        """Whether the adapter is an affine map, and so can go into a weight."""
        return self.kernel == "linear" and self.length is None

    def to_dict(self) -> dict[str, Any]:
        """As `PeftConfig.to_dict`, with sets as lists in one order: the same file every time."""
        found = super().to_dict()
        return {k: sorted(v) if isinstance(v, set) else v for k, v in found.items()}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As `PeftConfig.save_pretrained`, and a README.md there begins with what to import."""
        super().save_pretrained(save_directory, **kwargs)
        add_note(Path(save_directory))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """As `PeftConfig.from_pretrained`.

        A config that comes from a local folder remembers it until it is used once: if peft goes on
        to load an adapter, weights that are missing there or cut off are an error before the model
        is changed.
        """
        made: Any = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        folder = Path(os.fspath(pretrained_model_name_or_path)) / (subfolder or "")
        made.came_from = folder if folder.is_dir() else None
        return made

    def _parts(self) -> dict[str, tuple[int | None, ...]]:
        """What an adapted module has in a file of weights, and sizes that do not depend on it."""
        rows = self.num_features // KERNELS[self.kernel].parts
        found: dict[str, tuple[int | None, ...]] = {
            "snnk_weight": (self.down_sample, self.num_features)
        }
        if self.down_sample is None:
            found["snnk_gate"] = (None,)
        else:
            found |= {"snnk_up": (None, self.down_sample), "snnk_up_bias": (None,)}
        if self.save_projection:
            return {**found, "snnk_projection": (rows, None)}
        return {**found, "snnk_fingerprint": (rows,)}

    def _check_targets(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list) else value)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(
                f"layers_pattern={self.layers_pattern!r} needs layers_to_transform: which layers?"
            )
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform!r} needs a list as target_modules, "
                f"not {self.target_modules!r}: write the numbers into the regular expression."
            )
