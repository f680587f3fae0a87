"""`softext verify` and `softext adopt`."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

from hf_softext.attention.apply import apply_attention
from hf_softext.attention.record import all_configs
from hf_softext.attention.verify import verify_attention
from hf_softext.catalog import find


def parse_parameters(pairs: list[str]) -> dict[str, Any]:
    """`["power=3", "degenerate=zero"]` as a dict with numbers where they are numbers.

    Raises:
        ValueError: a pair without "=".
    """
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--param {pair!r} must be NAME=VALUE.")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


def verify(source: str, attention: str, pairs: list[str]) -> None:
    """Build the model without its weights, run it once, print what was reached."""
    import torch
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    logging.disable(logging.WARNING)
    find(attention, "attention")
    config = AutoConfig.from_pretrained(source)
    config.name_or_path = ""
    apply_attention(config, attention, **parse_parameters(pairs))
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(copy.deepcopy(config))
        report = verify_attention(model)
    except KeyError as error:
        raise ValueError(
            f"{source} ({config.model_type}) looks its attention up in a table of its own, which "
            f"has no {error}."
        ) from None
    except (RuntimeError, NotImplementedError):
        # some models look at values, which tensors without storage do not have: two real layers
        # then
        for part in all_configs(config):
            if getattr(part, "num_hidden_layers", 0) > 2:
                part.num_hidden_layers = 2
        report = verify_attention(AutoModel.from_config(config))
    print(f"{source} ({config.model_type}) runs {report}")


def adopt(
    source: str, attention: str, data: Path, out: Path | None, pairs: list[str], **settings: Any
) -> None:
    """Run an adoption and print what it reached."""
    from hf_softext.training.adoption.run import adopt as run
    from hf_softext.training.adoption.trainer import AdoptionArguments

    folder = out or Path(f"{Path(source).name}-{attention}")
    args = AdoptionArguments(
        output_dir=str(folder),
        model=source,
        attention=attention,
        data=str(data),
        parameters=json.dumps(parse_parameters(pairs)),
        **settings,
    )
    result = run(args)
    if args.process_index == 0:
        print(
            f"cosine to the original's outputs: {result.before:.4f} after the swap, "
            f"{result.after:.4f} adopted"
        )
        print(f"saved in {result.folder}")
        if result.after <= result.before:
            print("no closer than the bare swap: give it more steps, more text or a smaller rate")
