"""TRL's SFTTrainer with a loss by name, as a function and mixed in."""

import copy

import pytest
import torch
import transformers as hf
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import SFTConfig, SFTTrainer

from hf_softext.training.compute_loss_func import make_compute_loss_func
from hf_softext.training.softext_trainer import SoftextTrainerMixin
from tests.training.loss_steps import KeepGradient, model

WORDS = ["<pad>", "<eos>", *"abcd"]
TEXTS = ["a b c d", "a b", "d c b a a a", "b"] * 2


class MixedTrainer(SoftextTrainerMixin, SFTTrainer):
    """As a user writes it."""


def tokenizer():
    words = models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<eos>")
    whole = Tokenizer(words)
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    given = {"pad_token": "<pad>", "eos_token": "<eos>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=whole, **given)


def gradient(start, folder, how, batch_size, accumulation):
    llama = copy.deepcopy(start)
    trainer, given = {
        "function": (SFTTrainer, {"compute_loss_func": make_compute_loss_func("gce", llama)}),
        "mixin": (MixedTrainer, {"loss": "gce"}),
    }[how]
    args = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        optim="sgd",
        learning_rate=0.0,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        bf16=False,
        gradient_checkpointing=None,
        dataloader_pin_memory=False,
    )
    data = Dataset.from_dict({"text": TEXTS})
    keep = KeepGradient()
    given |= {"train_dataset": data, "processing_class": tokenizer(), "callbacks": [keep]}
    trainer(model=llama, args=args, **given).train()
    return keep.gradient


# TRL means to drop the argument in favour of subclasses, such as the mixin makes
@pytest.mark.filterwarnings("ignore:.compute_loss_func:FutureWarning")
@pytest.mark.parametrize("how", ["function", "mixin"])
def test_sft_has_one_gradient_however_the_step_is_cut(how, tmp_path):
    start = model("causal")
    whole = gradient(start, tmp_path, "mixin", 8, 1)
    assert whole.abs().max() > 0
    for cut in ((8, 1), (4, 2), (1, 8)):
        torch.testing.assert_close(
            gradient(start, tmp_path, how, *cut), whole, rtol=1e-5, atol=1e-6
        )
