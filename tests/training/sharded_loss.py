"""A fused loss of a model whose parameters lie in pieces on two processes (FSDP 2).

torchrun --nproc_per_node 2 sharded_loss.py: exits with 0 where the gradient is that of one process.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_softext.losses import get_loss
from hf_softext.training.fused import FusedHead
from hf_softext.training.problem import aligned_labels
from tests.processes import leave
from tests.training.loss_steps import ROWS, dataset, model


def main() -> None:
    """Each process takes half of the rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
    data, loss = dataset("causal"), get_loss("ce")
    tokens = torch.tensor(data["input_ids"])
    labels = aligned_labels({"labels": torch.tensor(data["labels"])}, causal=True)
    assert labels is not None
    whole, sharded = model("causal"), model("causal")
    loss(whole(input_ids=tokens).logits, labels).backward()

    head = FusedHead(sharded, loss, required=True).attach()
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    own = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    assert head.differs(sharded, {"input_ids": tokens[own]}) is None
    with head.active(labels[own], num_items=loss.count(labels)):
        output = sharded(input_ids=tokens[own])
    assert output.get("logits") is None
    # gradients are averaged over the two, and the count is of both
    (output.loss * 2).backward()
    expected = dict(whole.named_parameters())
    for name, parameter in sharded.named_parameters():
        assert parameter.grad is not None
        found, right = parameter.grad.full_tensor(), expected[name].grad
        assert (found - right).abs().max() <= 1e-5 * right.abs().max(), name
    # a weight that is taken apart again before the loss could use it
    apart = model("causal")
    head = FusedHead(apart, loss).attach()
    for part in (apart.lm_head, apart):
        fully_shard(part, mesh=mesh)
    assert "lies in pieces" in (head.differs(apart, {"input_ids": tokens[own]}) or "")
    leave()


if __name__ == "__main__":
    main()
