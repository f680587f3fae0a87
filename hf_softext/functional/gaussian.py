"""The Gaussian kernel of two sets of vectors, and attention with it in linear memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_softext.functional.masked_softmax import masked_softmax


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    r"""$\lVert x_i - y_j\rVert^2$, at least 0.

    Args:
        x: (..., N, D), floating point.
        y: (..., M, D).

    Returns:
        (..., N, M). From norms and dot products; what rounding leaves below 0 is 0, so that no
        kernel value exceeds 1.
    """
    norms = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return (norms - 2.0 * torch.matmul(x, y.transpose(-1, -2))).clamp(min=0.0)


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    r"""$\exp(-\lVert x_i - y_j\rVert^2 / 2)$, in (0, 1].

    Args:
        x: (..., N, D), floating point, every scale already in it.
        y: (..., M, D).

    Returns:
        (..., N, M).
    """
    return torch.exp(-0.5 * squared_distances(x, y))


def gaussian_weights(
    query: Tensor, key: Tensor, keep: Tensor, bias: Tensor | None = None, normalize: bool = False
) -> Tensor:
    """The weights of `gaussian_attention` as a matrix.

    Args:
        query: (B, H, Q, D).
        key: (B, H, K, D).
        keep: bool, broadcastable to (B, H, Q, K); True is visible.
        bias: added to the exponent, broadcastable to (B, H, Q, K), or None.
        normalize: whether a row sums to 1.

    Returns:
        (B, H, Q, K), exactly 0 where hidden.
    """
    exponent = -0.5 * squared_distances(query, key)
    if bias is not None:
        exponent = exponent + bias
    if normalize:
        return masked_softmax(exponent, keep)
    return exponent.masked_fill(~keep, 0.0).exp().masked_fill(~keep, 0.0)


def gaussian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    keep: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    normalize: bool = False,
) -> Tensor:
    r"""Attention whose weights are Gaussian kernel values, through torch's fused softmax attention.

    $$O_i = \sum_j w_{ij} v_j, \qquad w_{ij} = e^{-\lVert q_i - k_j\rVert^2/2 + b_{ij}}, \text{ or }
    w_{ij} / \textstyle\sum_l w_{il} \text{ if } \mathrm{normalize}$$

    Normalised, the norm of the query cancels: softmax of $q_i k_j - \lVert k_j\rVert^2/2$, with
    the second term as one more feature. Without normalisation the exponents are the scores of a
    softmax over the keys and one more key, the sink, whose score and value are 0. One more column
    of the values is 1 at the sink only. With $Z$ the softmax's denominator that column becomes
    $1/Z$ and the others $O/Z$, so their ratio is $O$. But for rounding and the bias no exponent is
    above 0, hence $1 \le Z \le 1 + K$.

    Args:
        query: (B, H, Q, D), float32 or float64, every scale already in it.
        key: (B, G, K, D), H a multiple of G.
        value: (B, G, K, Dv).
        keep: bool, broadcastable to (B, H, Q, K); True is visible. None: every key is, or those up
            to the query if `causal`.
        causal: without `keep`, query i sees keys 0 to i.
        bias: broadcastable to (B, H, Q, K), same dtype as the query.
        dropout: probability with which a weight is set to 0, the others being divided by 1 - p.
        normalize: whether a row of weights sums to 1.

    Returns:
        (B, Q, H, Dv), contiguous. A row that sees nothing is exactly 0.

    Notes:
        Neither scores nor weights are kept, forward or backward; with dropout, or where the bias
        needs a gradient, torch's kernel for the CPU keeps them. The exponent is a difference of
        terms of the size of the squared norms: in float32 a weight's relative error is about
        1e-7 times those, so that norms above some thousands have no place here.
    """
    if causal and bias is not None:
        # torch takes a mask or the word "causal"
        rows, columns = (torch.arange(x.shape[2], device=x.device) for x in (query, key))
        keep, causal = (rows[:, None] >= columns)[None, None], False
    if causal:
        # no query sees more, and a square matrix is what every kernel calls causal
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    mask = _mask(keep, bias, key.shape[2])
    ones = torch.ones_like(query[..., :1])
    query_norm, key_norm = (-0.5 * x.square().sum(-1, keepdim=True) for x in (query, key))
    if normalize:
        query, key = torch.cat([query, ones], -1), torch.cat([key, key_norm], -1)
        return _sdpa(query, key, value, mask, causal, dropout)

    query = torch.cat([query, ones, query_norm], -1)
    key = torch.cat([key, key_norm, torch.ones_like(key_norm)], -1)
    # the sink is the first key, and where the mask is causal an idle query comes first too: each
    # query then sees the sink and the keys that it saw before
    key = F.pad(key, (0, 0, 1, 0))
    if causal:
        query = F.pad(query, (0, 0, 1, 0))
    if mask is not None:
        mask = F.pad(mask, (1, 0), value=True if mask.dtype == torch.bool else 0.0)
    marker = F.pad(torch.ones_like(key[:, :, :1, :1]), (0, 0, 0, key.shape[2] - 1))
    columns = torch.cat([F.pad(value, (0, 0, 1, 0)), marker], -1)
    output = _sdpa(query, key, columns, mask, causal, dropout)
    # dropout may take the sink, which is no weight
    inverse = output if dropout == 0 else _sdpa(query, key, marker, mask, causal, 0.0)
    output = output[..., :-1] / inverse[..., -1:]
    return output[:, 1:].contiguous() if causal else output


def _mask(keep: Tensor | None, bias: Tensor | None, keys: int) -> Tensor | None:
    """One mask with 4 dimensions and K written out, bool or additive."""
    mask = keep
    if bias is not None:
        mask = bias if keep is None else torch.where(keep, bias, -torch.inf)
    if mask is None:
        return None
    return mask[(None,) * (4 - mask.dim())].expand(-1, -1, -1, keys)


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """Softmax of the dot products, (B, Q, H, Dv). The fused kernels want one width, aligned."""
    if query.shape[1] != key.shape[1] and not query.is_cpu:
        # elsewhere the fused kernel for float32 knows no groups
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    width = -(-max(query.shape[-1], value.shape[-1]) // 8) * 8
    padded = (F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    output = F.scaled_dot_product_attention(
        *padded,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=1.0,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[..., : value.shape[-1]].transpose(1, 2).contiguous()
