"""A tiny model with a head on random features, and its closed form in two processes.

torchrun --nproc_per_node 2 closed_form_work.py FOLDER: writes FOLDER/sums.safetensors.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch.utils.data import DataLoader, SubsetRandomSampler

from hf_softext.adapters.snnk.closed_form import collect, fit_closed_form
from hf_softext.adapters.snnk.head import SnnkHead

# a number that two processes and batches of two do not divide
ROWS = 13


def model(head: int | None = 10) -> Any:
    """BERT of one layer with a head of so many features, or its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.BertConfig(**sizes, intermediate_size=16, vocab_size=40, num_labels=3)
    made = hf.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    if head is not None:
        made.classifier = SnnkHead(16, 3, head, seed=1)
    # in float32 the features themselves depend on how the rows are batched
    return made.double().eval()


def rows(count: int = ROWS) -> dict[str, list]:
    """Random tokens and classes."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 40, (count, 7), generator=draw)
    labels = torch.randint(0, 3, (count,), generator=draw)
    return {"input_ids": tokens.tolist(), "labels": labels.tolist()}


def items(count: int = ROWS) -> list[dict[str, torch.Tensor]]:
    """The same row by row."""
    data = {name: torch.tensor(column) for name, column in rows(count).items()}
    return [{name: column[row] for name, column in data.items()} for row in range(count)]


def batches(size: int = 4) -> list[dict[str, torch.Tensor]]:
    """The same in batches."""
    return list(DataLoader(items(), batch_size=size))


def fitted(loader: Any, ridge: float = 1e-3) -> torch.Tensor:
    """Weight and bias of the head."""
    made = model()
    fit_closed_form(made, loader, ridge, progress=False)
    out = made.classifier.out
    return torch.cat((out.weight, out.bias[:, None]), 1).detach()


def plain(**given: Any) -> Any:
    """Shared out by us."""
    return DataLoader(items(), batch_size=2, **given)


def prepared(data: Any = None, loader: dict[str, Any] | None = None, **config: Any) -> Any:
    """Shared out by accelerate."""
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**config))
    return accelerator.prepare(DataLoader(data or items(), batch_size=2, **(loader or {})))


CASES = {
    "plain": plain,
    "shuffled": lambda: plain(shuffle=True),
    "prepared": prepared,
    "dispatched": lambda: prepared(dispatch_batches=True),
    "uneven": lambda: prepared(even_batches=False),
    # len(dataset) is not how many rows there are
    "sampled": lambda: prepared(
        [*items(), *items()], {"sampler": SubsetRandomSampler([*range(ROWS)])}
    ),
}


def main(folder: str) -> None:
    """Every kind of loader."""
    torch.set_num_threads(1)
    # torchrun alone does not tell accelerate that there are several processes without a GPU
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    found = {}
    for name, make in CASES.items():
        sums, _ = collect(model(), make(), progress=False)
        found[f"{name}.rows"] = torch.tensor(sums.rows)
        found[f"{name}.gram"] = sums.gram.clone()
        found[f"{name}.cross"] = sums.cross.clone()
        found[f"{name}.weight"] = sums.solve()[0].contiguous()
    wrong = items()
    # a row of the second process
    wrong[2]["labels"] = torch.tensor(7)
    told = 0
    try:
        fit_closed_form(model(), DataLoader(wrong, batch_size=2), progress=False)
    except ValueError as error:
        told = int("label 7 is none" in str(error))
    found["told"] = torch.tensor(gather_object([told]))
    if state.is_main_process:
        save_file(found, Path(folder) / "sums.safetensors")
    state.wait_for_everyone()
    # its threads may outlive the interpreter otherwise
    state.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
