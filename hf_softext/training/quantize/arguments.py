"""Arguments of the quantization of a model; nothing heavy is imported for `--help`."""

from dataclasses import dataclass, field
from typing import Any

from hf_softext.quantization.baq.options import OPTIONS


@dataclass
class QuantizeArguments:
    """What to quantize, how, on which text, and what to measure.

    `model` and `output_dir` are needed, and `data` unless the solver is "rtn".
    """

    model: str | None = field(
        default=None, metadata={"help": "Model to quantize: a hub id or a folder."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "New folder for the quantized model.", "aliases": ["--out"]},
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": "Text to calibrate with: a file, a folder of .txt and .jsonl files, or the "
            "name of a dataset."
        },
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of a dataset that has several."}
    )
    column: str = field(
        default="text", metadata={"help": "The column of a table that holds the text."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "A hub id, a folder, or bytes; by default that of the model."},
    )
    bits: float = field(
        default=3.0,
        metadata={"help": "Average true bits of a quantized weight, all that is stored included."},
    )
    bit_range: list[int] = field(
        default_factory=lambda: [1, 8], metadata={"help": "Fewest and most bits of a column."}
    )
    allocation: str = field(
        default="auto",
        metadata={
            "help": "Who competes for bits: model (all columns), layer (those of one), auto (model "
            "if it generates text, else layer); or uniform or paper, where bits is the nominal "
            "width."
        },
    )
    solver: str = field(
        default="gptq", metadata={"help": "gptq, or rtn (nearest value), which needs no data."}
    )
    nsamples: int | None = field(
        default=None,
        metadata={
            "help": "Sequences to calibrate with; by default 128 windows of running text, or 2,048 "
            "texts for a model that gets them one by one."
        },
    )
    seqlen: int = field(default=2048, metadata={"help": "Tokens of a sequence, at most."})
    act_order: bool = field(
        default=True, metadata={"help": "Quantize columns with larger activations first."}
    )
    clip: bool = field(
        default=True,
        metadata={"help": "Search the ranges of the grids; else they hold every weight."},
    )
    refine: int = field(
        default=2,
        metadata={"help": "How often the widths in a layer are chosen anew from measured losses."},
    )
    damp: float = field(
        default=0.01,
        metadata={"help": "Share of its mean that is added to the Gram matrix's diagonal."},
    )
    block_size: int = field(
        default=128, metadata={"help": "Columns between two updates; changes speed only."}
    )
    modules_to_not_convert: list[str] | None = field(
        default=None, metadata={"help": "Names, or ends of names, of modules to leave as they are."}
    )
    seed: int = field(default=0, metadata={"help": "Which sequences are drawn."})
    attention: str | None = field(
        default=None,
        metadata={"help": "Attention method, or sdpa or eager; by default what the model has."},
    )
    attention_parameters: str = field(
        default="{}",
        metadata={"help": "Parameters of the attention method as JSON, or a mapping in the file."},
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Of what stays unquantized: auto (as stored), float32, bfloat16, float16."
        },
    )
    held_out: float = field(
        default=0.1,
        metadata={
            "help": "Share of the text, its last part, that is measured on and not calibrated with."
        },
    )
    test_nsamples: int = field(
        default=128, metadata={"help": "Held-out sequences to measure on, at most."}
    )
    report: bool = field(
        default=False,
        metadata={"help": "Write report.html beside the model; needs the extra plots."},
    )
    report_bits: list[float] = field(
        default_factory=lambda: [2.0, 2.5, 3.0, 4.0],
        metadata={
            "help": "Averages that the report compares; at whole ones also RTN and GPTQ of one "
            "width."
        },
    )
    use_cpu: bool = field(
        default=False, metadata={"help": "Stay on the CPU where there is an accelerator."}
    )

    def __post_init__(self):
        # a YAML file may say 2 where the command line has 2.0: they are the same run
        for name in ("bits", "held_out"):
            if isinstance(getattr(self, name), int):
                setattr(self, name, float(getattr(self, name)))

    def config(self, **changed: Any) -> Any:
        """The `BaqConfig` that these arguments ask for.

        Args:
            **changed: what is to be different, and the data.

        Raises:
            ValueError: a value out of its range.
        """
        from hf_softext.quantization.baq.config import BaqConfig

        return BaqConfig(**{**{name: getattr(self, name) for name in OPTIONS}, **changed})

    def method_parameters(self) -> dict[str, Any]:
        """The parsed `attention_parameters`."""
        from hf_softext.training.arguments import json_object

        return json_object("attention_parameters", self.attention_parameters)

    def check(self) -> None:
        """Raise ValueError for a value that is out of range or goes with no other."""
        self.config()
        self.method_parameters()
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype={self.dtype!r}: use auto, float32, bfloat16 or float16.")
        if not isinstance(self.held_out, float) or not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out!r} must be a share from 0 to below 1.")
        if not isinstance(self.test_nsamples, int) or self.test_nsamples < 1:
            raise ValueError(f"test_nsamples={self.test_nsamples!r} must be 1 or more.")
        if not self.data and self.solver != "rtn":
            raise ValueError(
                f"data is missing: solver={self.solver!r} needs text to calibrate with; "
                "solver=rtn needs none."
            )
        if self.report and not (self.data and self.held_out):
            raise ValueError(
                "report=True compares on held-out text: give it data, and held_out above 0."
            )
        if self.report:
            for bits in self.report_bits:
                self.config(bits=bits, allocation="auto")
