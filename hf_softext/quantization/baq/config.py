"""What a user says about the quantization, and what a checkpoint says about it."""

import copy
import difflib
import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_softext.quantization.baq.digests import CHECKSUMS
from hf_softext.quantization.baq.options import OPTIONS
from hf_softext.quantization.baq.weight import Settings

FORMAT_VERSION = 1
ALLOCATIONS = ("auto", "model", "layer", "uniform", "paper")
SOLVERS = ("gptq", "rtn")

# of this run only: what a checkpoint says about them is never read
_RUN = ("dataset", "tokenizer", "work_dir")


class BaqConfig(QuantizationConfigMixin):
    """Quantize every linear layer of the repeated blocks to an average width.

    ```python
    config = BaqConfig(bits=2.5, dataset="calibration.txt", tokenizer=tokenizer)
    model = AutoModelForCausalLM.from_pretrained(name, quantization_config=config)
    model.save_pretrained("out")
    ```

    Args:
        bits: average bits of a quantized weight, all counted that lies in the file for it: codes,
            level map, row ranges. For the allocations "uniform" (whole numbers only) and "paper" it
            is the nominal width of a code, as in the literature.
        bit_range: fewest and most bits of a column, within 0 to 8.
        allocation: "model": all columns of the model compete for bits; "layer": those of one layer;
            "auto": "model" for a model that generates text, else "layer", as losses of layers can
            be compared in the one and not in encoders with outlier channels; "uniform": every
            column has the same; "paper": as the authors' code, with any number of levels.
        solver: "gptq", or "rtn" (nearest value, no data needed).
        dataset: texts to calibrate with: a path, a list of texts or of token ids, or a dataset.
            Needed for "gptq".
        tokenizer: what makes tokens of the texts, or its name; by default the model's own.
        nsamples: sequences to calibrate with; by default 128 windows of running text, or, for a
            model that gets texts one by one, 2,048 of them.
        seqlen: tokens of each.
        act_order: whether columns with larger activations are quantized first.
        clip: whether the ranges of the grids are searched; else they hold every weight.
        refine: how often the widths are chosen anew from measured losses.
        damp: what is added to the diagonal of the Gram matrix, as a share of its mean.
        block_size: columns between two updates of all that follow; no effect on the result.
        modules_to_not_convert: names, or ends of names, of modules to leave as they are.
        seed: which sequences are drawn.
        work_dir: folder in which finished blocks are kept, so that a run that broke off goes on.
        stored: what a checkpoint's config has besides. Keys that a newer release has added are left
            out; without a `format_version`, as in a call by hand, an unknown name is an error.

    Attributes:
        module_planes: number of bit planes of each quantized module, by name.
        calibration: fingerprint of the calibration data; None for "rtn".
        checksums: of all tensors, see `digests`; known only between saving and writing, and between
            reading and loading.

    Raises:
        ValueError: an argument out of its range, or a checkpoint of a format that this release
            cannot read.

    Reference: C. Zhang, L. Wang, S. Lasaulce, M. Debbah, BAQ: Efficient Bit Allocation Quantization
    for Large Language Models, 2025, arXiv 2506.05664.
    """

    def __init__(
        self,
        bits: float = 3.0,
        bit_range: tuple[int, int] = (1, 8),
        allocation: str = "auto",
        solver: str = "gptq",
        dataset: Any = None,
        tokenizer: Any = None,
        nsamples: int | None = None,
        seqlen: int = 2048,
        act_order: bool = True,
        clip: bool = True,
        refine: int = 2,
        damp: float = 0.01,
        block_size: int = 128,
        modules_to_not_convert: list[str] | None = None,
        seed: int = 0,
        work_dir: str | Path | None = None,
        **stored: Any,
    ):
        self.quant_method = "baq"  # type: ignore[assignment]
        _check_stored(stored)
        from_file = "format_version" in stored
        self.bits = bits
        self.bit_range = bit_range
        self.allocation = allocation
        self.solver = solver
        self.dataset = None if from_file else dataset
        self.tokenizer = None if from_file else tokenizer
        self.nsamples = nsamples
        self.seqlen = seqlen
        self.act_order = act_order
        self.clip = clip
        self.refine = refine
        self.damp = damp
        self.block_size = block_size
        self.modules_to_not_convert = modules_to_not_convert
        self.seed = seed
        self.work_dir = None if from_file else work_dir
        self.module_planes: dict[str, int] = stored.get("module_planes") or {}
        self.calibration: dict[str, Any] | None = stored.get("calibration")
        self.checksums: str | None = stored.get("checksums")
        self.validate()

    def validate(self) -> None:
        """Check every argument; what JSON has changed becomes again what it was.

        Raises:
            ValueError: naming the argument, the value and what it may be.
        """
        _number("bits", self.bits, above=0)
        pair = self.bit_range
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not all(_is_whole(bound) for bound in pair)
            or not 0 <= pair[0] <= pair[1] <= 8
            or pair[1] == 0
        ):
            raise ValueError(
                f"bit_range={pair!r}: give the fewest and the most bits of a column, two whole "
                "numbers within 0 to 8, for example (1, 8)."
            )
        self.bit_range = (int(pair[0]), int(pair[1]))
        _choice("allocation", self.allocation, ALLOCATIONS)
        _choice("solver", self.solver, SOLVERS)
        if self.allocation in ("uniform", "paper") and not 1 <= self.bits <= 8:
            raise ValueError(
                f"bits={self.bits!r}: with allocation={self.allocation!r} it is the width of a "
                "code, 1 to 8."
            )
        if self.allocation == "uniform" and self.bits != round(self.bits):
            raise ValueError(
                f"bits={self.bits!r}: with allocation='uniform' every column has the same whole "
                "number of bits; use allocation='model' for an average in between."
            )
        low, high = self.bit_range
        if self.allocation == "uniform" and not low <= self.bits <= high:
            raise ValueError(
                f"bits={self.bits!r}: with allocation='uniform' it is the width of every column, "
                f"which bit_range={self.bit_range} does not allow."
            )
        for name in ("seqlen", "block_size"):
            _whole(name, getattr(self, name), 1)
        if self.nsamples is not None:
            _whole("nsamples", self.nsamples, 1)
        for name in ("refine", "seed"):
            _whole(name, getattr(self, name), 0)
        _number("damp", self.damp, above=0)
        for name in ("act_order", "clip"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: use True or False.")
        names = self.modules_to_not_convert
        if names is not None and not (
            isinstance(names, list | tuple)
            and all(isinstance(name, str) and name for name in names)
        ):
            raise ValueError(
                f"modules_to_not_convert={names!r}: give a list of module names, for example "
                "['lm_head'], or None."
            )
        self.modules_to_not_convert = None if names is None else list(names)
        if not isinstance(self.work_dir, str | Path | None) or self.work_dir == "":
            raise ValueError(f"work_dir={self.work_dir!r}: give the path of a folder, or None.")
        if not isinstance(self.module_planes, Mapping) or not all(
            isinstance(name, str) and _is_whole(planes) and planes >= 0
            for name, planes in self.module_planes.items()
        ):
            raise ValueError(
                "module_planes of the checkpoint's config must be a whole number for each module's "
                "name; the file is damaged. Take a fresh copy of config.json."
            )
        if not isinstance(self.calibration, Mapping | None):
            raise ValueError(
                f"calibration={self.calibration!r} in the checkpoint's config is no mapping; the "
                "file is damaged. Take a fresh copy of config.json."
            )

        sums = self.checksums
        if sums is not None and not (isinstance(sums, str) and CHECKSUMS.fullmatch(sums)):
            raise ValueError(
                "checksums of the checkpoint's config must be hexadecimal digits, eight for each "
                "tensor; the file is damaged. Take a fresh copy of config.json."
            )

    def settings(self) -> Settings:
        """What the solver and the allocation need of it."""
        return Settings(
            bits=float(self.bits),
            bit_range=self.bit_range,
            allocation=self.allocation,
            solver=self.solver,
            act_order=self.act_order,
            clip=self.clip,
            refine=self.refine,
            damp=float(self.damp),
            block_size=self.block_size,
        )

    def resolve(self, model: Any) -> None:
        """Say what "auto" stands for with a model."""
        if self.allocation == "auto":
            generates = getattr(model, "can_generate", lambda: False)()
            self.allocation = "model" if generates else "layer"

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds: plain values, and nothing of the data or of this machine."""
        values = {name: getattr(self, name) for name in OPTIONS}
        values |= {
            "quant_method": "baq",
            "format_version": FORMAT_VERSION,
            "bit_range": list(self.bit_range),
            "module_planes": dict(self.module_planes),
            "calibration": self.calibration,
            "checksums": self.checksums,
        }
        return copy.deepcopy(values)

    def get(self, key: str, default: Any = None) -> Any:
        """An attribute, as of a dict: transformers asks so where a model's config is passed on."""
        return getattr(self, key, default)

    def __iter__(self):
        yield from self.to_dict().items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaqConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> "BaqConfig":
        # transformers copies configs at every turn; data are only read, and may be large
        twin = copy.copy(self)
        memo[id(self)] = twin
        for name, value in vars(self).items():
            if name not in _RUN:
                setattr(twin, name, copy.deepcopy(value, memo))
        return twin


def _check_stored(stored: Mapping[str, Any]) -> None:
    method = stored.get("quant_method", "baq")
    if method != "baq":
        raise ValueError(f"quant_method={method!r} is not 'baq'; use the config class of {method}.")
    if "format_version" in stored:
        version = stored["format_version"]
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise ValueError(
                f"format_version={version!r}: this release of hf_softext reads BAQ checkpoints of "
                f"format version {FORMAT_VERSION}. Use the release that wrote it, or a newer one."
            )
        return
    facts = ("quant_method", "module_planes", "calibration", "checksums")
    for name in stored:
        if name not in facts:
            near = difflib.get_close_matches(name, (*OPTIONS, *_RUN), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; use one of {', '.join(OPTIONS)}."
            raise ValueError(f"{name}={stored[name]!r} is no argument of BaqConfig{hint}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _whole(name: str, value: Any, least: int) -> None:
    if not _is_whole(value) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number, {least} or more.")


def _number(name: str, value: Any, above: float) -> None:
    if (
        not isinstance(value, Real)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value <= above
    ):
        raise ValueError(f"{name}={value!r}: give a finite number above {above}.")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: use one of {', '.join(choices)}.")
