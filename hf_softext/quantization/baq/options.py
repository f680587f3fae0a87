"""The names of what a user may say about the quantization; imports nothing."""

OPTIONS = (
    "bits",
    "bit_range",
    "allocation",
    "solver",
    "nsamples",
    "seqlen",
    "act_order",
    "clip",
    "refine",
    "damp",
    "block_size",
    "modules_to_not_convert",
    "seed",
)
