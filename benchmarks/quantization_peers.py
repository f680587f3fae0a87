"""HQQ and AutoRound, run by their own packages, and their weights as a plain checkpoint.

    PEER_PYTHON benchmarks/quantization_peers.py hqq SOURCE OUT --modules FILE --bits 2 --group 64
    PEER_PYTHON benchmarks/quantization_peers.py --versions

Called by `quantization_quality.py` with a Python that has them, which needs nothing of hf_softext.
A group of 0 is a whole row. OUT is a checkpoint of float32 weights that have the quantized values;
the last line printed tells seconds and versions as JSON.

References: H. Badri, A. Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023;
W. Cheng et al., Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs,
2023, arXiv 2309.05516.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import time

import torch

# name -> module to import and distribution that brings it
PEERS = {"hqq": ("hqq", "hqq"), "autoround": ("auto_round", "auto-round")}


def versions() -> dict[str, str]:
    """The version of each peer that this Python has."""
    return {
        peer: importlib.metadata.version(distribution)
        for peer, (module, distribution) in PEERS.items()
        if importlib.util.find_spec(module)
    }


def hqq(model: torch.nn.Module, names: list[str], bits: int, group: int) -> None:
    """Half-quadratic quantization, which looks at the weights alone; grouped along the inputs."""
    from hqq.core.quantize import Quantizer

    for name in names:
        weight = model.get_submodule(name).weight
        codes, meta = Quantizer.quantize(
            weight.data,
            nbits=bits,
            group_size=group or weight.shape[1],
            axis=1,
            bitpack=False,
            device="cpu",
        )
        # float16 is what its checkpoints hold
        scale, zero = meta["scale"].half().float(), meta["zero"].half().float()
        weight.data = ((codes.float() - zero) * scale).reshape(weight.shape)


def autoround(
    model: torch.nn.Module,
    names: list[str],
    bits: int,
    group: int,
    sequences: torch.Tensor,
    symmetric: bool,
    iterations: int,
) -> None:
    """Signed gradient descent on the rounding, block after block, against each block's output."""
    from auto_round import AutoRound

    before = {name: model.get_submodule(name).weight.detach().clone() for name in names}
    AutoRound(
        model,
        # asked for, and not used as the sequences are tokens already
        tokenizer=object(),
        bits=bits,
        group_size=group or -1,
        sym=symmetric,
        iters=iterations,
        dataset=torch.utils.data.DataLoader([{"input_ids": row} for row in sequences], 8),
        nsamples=len(sequences),
        seqlen=sequences.shape[1],
        batch_size=8,
        amp=False,
        device_map="cpu",
    ).quantize()
    same = [name for name in names if torch.equal(model.get_submodule(name).weight, before[name])]
    if same:
        raise RuntimeError(f"AutoRound left {same[0]} as it was.")


def main() -> None:
    """Quantize one checkpoint by one peer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--versions", action="store_true", help="print what this Python has")
    parser.add_argument("peer", nargs="?", choices=[*PEERS])
    parser.add_argument("source", nargs="?")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--class", dest="loader", default="AutoModelForCausalLM")
    parser.add_argument("--modules", help="JSON list of the names of the linear layers")
    parser.add_argument("--sequences", help="safetensors file with input_ids (N, S)")
    parser.add_argument("--bits", type=int)
    parser.add_argument("--group", type=int, default=0)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--iterations", type=int, default=200)
    given = parser.parse_args()
    if given.versions:
        print(json.dumps(versions()))
        return
    import transformers
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    with open(given.modules, encoding="utf-8") as file:
        names = json.load(file)
    loader = getattr(transformers, given.loader)
    model = loader.from_pretrained(given.source, dtype=torch.float32).eval()
    start = time.time()
    if given.peer == "hqq":
        hqq(model, names, given.bits, given.group)
    else:
        sequences = load_file(given.sequences)["input_ids"]
        options = (sequences, given.symmetric, given.iterations)
        autoround(model, names, given.bits, given.group, *options)
    seconds = time.time() - start
    model.float().save_pretrained(given.out)
    print(json.dumps({"seconds": seconds, "version": versions()[given.peer]}))


if __name__ == "__main__":
    main()
