"""The words of the page that `adapters.py --report` writes; its figures are not here."""

HEAD_OF_PAGE = """# What SNNK adapters are worth, number for number

Written by `python benchmarks/adapters.py --report` from `benchmarks/results/adapters.csv`, where
every run is.

**This is small, and made for one core.** Three tasks:

- CLINC150 and Banking77 with all-MiniLM-L6-v2 (22 million parameters, frozen), few-shot: 5 and 8
  training rows a class, others for each seed; 3 epochs in batches of 16. Every adapter is in the
  same top two layers; the hidden states below them are computed once. Tested on 10 and 20 rows a
  class of the test splits. The same linear head on the mean of the tokens is trained beside each
  adapter; it starts as the classifier by the nearest class mean.
- a Llama of 1.3 million parameters that has learnt Shakespeare byte by byte is adapted to the
  source of Python's standard library, in all four layers: 100 steps of 8 windows of 64 bytes.
  The loss is that on other files. "head alone" is the output layer, which adapters leave frozen.

SNNK and the bottleneck are at the layers that attention and the feed-forward block put out
("outputs" for LoRA), LoRA also at the queries and values ("q v") and at all linear layers, VeRA at
queries and values. LoRA and VeRA are peft's, the bottleneck is y + U relu(D y), or D x in
parallel.

For each method the learning rate is the best on validation rows of three half a decade apart, or
more where the best was at an edge, with seed 0; the head beside an adapter has the rate that is
best for the head alone. Then there are three seeds: other adapters, other batches, other training
rows. AdamW, no weight decay, no dropout, float32.

"adapter" counts the trained numbers of the adapter, "all trained" the head with them. The front are
those that no method with as few of all trained numbers beats, by the means alone: near neighbours
on it are not told apart. ± is the standard deviation over the seeds."""

FRONT = """## In short

- On the language model SNNK is on the front of the adapters **in parallel**, not serial, which is
  how its authors' code has it. In parallel, with the linear kernel or with relu and a floor of -5,
  which lets most negative values through and so is nearly linear too, from 16 features on its mean
  is ahead of every adapter of as many parameters: told apart from the serial bottleneck and from
  LoRA at queries and values; from the parallel bottleneck with the floor only; from LoRA at its own
  layers not.
- Serial with relu and floor 0, it is no better than any peer but LoRA at queries and values.
- "5x fewer" does not hold. At a fifth of the parameters of the large bottlenecks or of LoRA at all
  linear layers no SNNK gets what they get. At about a quarter parallel SNNK does, against the
  serial bottleneck and LoRA with 8 rows, and not against the parallel bottleneck; LoRA with 16 rows
  is reached at less than half.
- On the two few-shot tasks size buys nothing: VeRA or LoRA with one row, and SNNK with 4 features,
  are as good as adapters 30 times as large, and the gain over the head alone is a point at most. Of
  22 comparisons at equal size three are told apart, two for SNNK and one against it.
- SNNK wants a learning rate three times that of LoRA with as many parameters, or more. Another
  start of V, a faster gate, or inputs of unit length bring nothing once the rate is right."""

READINGS: dict[str, str] = {
    "clinc150": """Adapters win about a point over the head alone, and more of their parameters
do not win more: VeRA with 2,560 numbers, the smallest of all, is on the front and reaches every
large peer, as SNNK with 4 features does. So a fifth of the parameters is enough here, and is so for
the peers as well.""",
    "banking77": """No adapter is much better than the head alone, nor than another. SNNK with a
fifth of the parameters reaches the large peers, and so does LoRA with one row, or the head without
any adapter: there is nothing here to reach.""",
    "python": """Here size matters, and so does place. Serial SNNK with relu is level with a serial
bottleneck of as many parameters, or behind it, and ahead of LoRA at queries and values, which is
the wrong place for this task: LoRA at SNNK's layers has a lower loss than serial SNNK. Parallel
SNNK, linear or with the floor, has the lowest mean of all adapters of its size from 16 features on;
at 4 features it is level with its peers, and at 8 to 12 LoRA with one row at all linear layers is
as good. More steps may change this: in so few the large peers win little over the small ones. The
output layer alone has the lowest loss of all, with half the parameters of the large adapters, which
parallel SNNK with 64 features and the floor comes close to: other bytes are likely in Python, and
that is what is mostly to be learnt.""",
}

EQUAL_SIZE = """At equal adapter parameters, within 15 %; ± half of a 95 % interval of the paired
differences over the seeds, of a t distribution:"""

FIFTH = """With a fifth of a peer's adapter parameters; ± the standard error of the paired
differences. A peer is reached where the mean is no worse by more than that:"""

ENOUGH = "How few adapter parameters are enough:"

EXPLORED = """Best of the learning rates, validation rows, seed 0, 16 features with relu, one thing
changed at a time from what the first row has: serial, floor 0, inputs as they are, orthogonal
projection, V = phi(W0) with W0 of standard deviation 0.02, one rate for gate and V. One seed, whose
spread is that of the tables above: differences of a standard deviation mean little. CLINC150 has
only some of the rows."""

CHOSEN = """What was better here was then run with three seeds, see the table of the language model:
the placement alone, the floor alone, both, and the linear kernel in parallel. The last two are
level, so the nonlinearity is not what helps. The linear one can be merged into the weight."""

COSTS = """In the first tables of each task: a step of training on one batch, milliseconds of
processor time on one core, median of seven, and the peak of the memory that the step takes beyond
what is held, MiB. All adapters at the same layers take about the same; fewer trained numbers are
fewer numbers to keep and to send, not less time. The head alone needs no backward pass through the
model, and its step includes the frozen layers' forward pass."""
