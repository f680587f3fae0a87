"""Two processes: each with a seed of its own, data parallel. Every one prints nothing or fails."""

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel

from hf_softext.adapters.snnk.config import SnnkConfig
from tests.adapters.models import classifier


def same_everywhere(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The names of those that are equal in both processes."""
    equal = []
    for name, tensor in tensors.items():
        both = [torch.empty_like(tensor) for _ in range(2)]
        dist.all_gather(both, tensor.contiguous())
        if torch.equal(*both):
            equal.append(name)
    return equal


def main() -> None:
    """Projections agree before anything is sent; the rest does after, and stays so."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)
    torch.set_num_threads(1 + rank)
    base = classifier(torch.float32 if rank else torch.bfloat16)
    model = get_peft_model(base, SnnkConfig(num_features=4))
    projections = {k: b for k, b in model.named_buffers() if "snnk_projection" in k}
    assert len(projections) == 4
    assert same_everywhere(projections) == list(projections)
    weights = {k: p.data for k, p in model.named_parameters() if "snnk_weight" in k}
    assert same_everywhere(weights) == []
    wrapped = DistributedDataParallel(model.float())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        # another batch in each
        ids = torch.randint(3, 50, (4, 9))
        wrapped(input_ids=ids, labels=ids[:, 0] % 3).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = {k: p.data for k, p in model.named_parameters() if p.requires_grad}
    assert same_everywhere(trained) == list(trained)
    assert any(p.any() for k, p in trained.items() if "snnk_gate" in k)
    # the first to leave may take the other's connection with it
    dist.barrier()
    del wrapped
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
