"""What a low-rank method asks of the values of its inputs: one operator, so that torch.compile
keeps the question and its errors without a graph break."""

import torch
from torch import Tensor


def refusal(name: str, reason: str) -> str:
    """The message of an error: what cannot be approximated, and the way out."""
    return (
        f"attn_implementation={name!r} with mode='low_rank' does not work with {reason}: its "
        f"landmarks are made of all tokens, which every query sees. Set mode='exact'."
    )


def unequal(name: str) -> str:
    """The message of an error: query and key differ."""
    return (
        f"attn_implementation={name!r} with mode='low_rank' needs one tensor as query and key, but "
        f"they differ. Set tie='query' (the key is not used, and its projection gets no gradient) "
        f"or tie='mean' (of both) and fine-tune, as either changes the function; or mode='exact'."
    )


@torch.library.custom_op("softext::admit_tokens", mutates_args=())
def admit_tokens(
    keep: Tensor | None,
    bias: Tensor | None,
    query: Tensor | None,
    key: Tensor | None,
    name: str,
) -> Tensor:
    """Which tokens are no padding.

    Args:
        keep: bool, 4 dimensions, broadcastable to (B, H, N, N); or None.
        bias: what an additive mask adds where it does not hide; or None.
        query: (B, H, N, D), to be compared with `key`; or None. Not both of it and `keep` are None.
        key: as the query.
        name: of the method, for messages.

    Returns:
        bool (B, N), or (1, N) where the mask is the same for all or there is none.

    Raises:
        ValueError: the mask hides more than padding: two queries that are no padding see different
            keys; or it adds something; or query and key differ.
    """
    if bias is not None and bool(bias.any()):
        raise ValueError(refusal(name, "an attention_mask that adds a bias"))
    valid = _fresh(keep, query).fill_(True) if keep is None else _no_padding(keep, name)
    # last, so that nobody is sent to `tie` whose mask would be refused next
    if query is not None and key is not None and not torch.equal(query, key):
        raise ValueError(unequal(name))
    return valid


def _no_padding(keep: Tensor, name: str) -> Tensor:
    # an expanded mask is one row for all
    for dim in (1, 2):
        if keep.stride(dim) == 0:
            keep = keep.narrow(dim, 0, 1)
    valid = keep.flatten(1, 2).any(1)
    same = keep == valid[:, None, None, :]
    if keep.shape[2] > 1:
        # what a padding token would see does not matter
        same |= ~valid[:, None, :, None]
    if not bool(same.all()):
        raise ValueError(refusal(name, "a mask in which queries see different keys"))
    return valid


@admit_tokens.register_fake
def _(keep, bias, query, key, name):
    return _fresh(keep, query)


def _fresh(keep: Tensor | None, query: Tensor | None) -> Tensor:
    if keep is not None:
        return keep.new_empty(keep.shape[0], keep.shape[3])
    return torch.empty(1, query.shape[2], dtype=torch.bool, device=query.device)  # pyright: ignore[reportOptionalMemberAccess]
