"""Bags stay whole, wherever a step is cut, and their labels are means of bags."""

import pytest
import torch
from datasets import Dataset

from hf_softext.data.bags import make_bags
from hf_softext.losses import get_loss
from hf_softext.training.aggregate import AggregateTrainer, BagBatchSampler
from tests.training.loss_steps import ROWS, arguments, dataset, model
from tests.training.special_steps import bags, take


def order(sampler):
    return [list(batch) for batch in sampler]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_are_whole_bags_evenly_split(processes):
    sizes = [3, 1, 4, 2, 4, 1, 3]
    owner = [bag for bag, size in enumerate(sizes) for _ in range(size)]
    owner = [owner[i] for i in torch.randperm(len(owner)).tolist()]
    samplers = [
        BagBatchSampler(owner, 8, seed=1, processes=processes, rank=rank)
        for rank in range(processes)
    ]
    epochs = []
    for epoch in range(3):
        batches = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            assert len(order(sampler)) == len(sampler)
            batches += order(sampler)
        assert sorted(index for batch in batches for index in batch) == list(range(len(owner)))
        for batch in batches:
            assert 0 < len(batch) <= 8
            inside = {owner[index] for index in batch}
            assert sum(sizes[bag] for bag in inside) == len(batch)
        epochs.append(batches)
    assert len({len(sampler) for sampler in samplers}) == 1
    assert epochs[0] != epochs[1]
    samplers[0].set_epoch(1)
    assert order(samplers[0]) == epochs[1][: len(samplers[0])]
    other = BagBatchSampler(owner, 8, seed=2, processes=processes)
    assert order(other) != epochs[0][: len(other)]
    # too few for a batch of each process: some twice, none never
    few = [BagBatchSampler([0, 0, 1, 1, 2, 2], 2, processes=2, rank=rank) for rank in (0, 1)]
    assert [len(order(sampler)) for sampler in few] == [2, 2]
    assert {index for sampler in few for batch in sampler for index in batch} == set(range(6))
    with pytest.raises(ValueError, match="bag 2 has 4 samples, and a batch 3: it would be cut"):
        BagBatchSampler(owner, 3)


def test_a_step_is_the_same_however_it_is_cut(tmp_path):
    whole = take("aggregate", tmp_path, 16, 1)
    data = bags()
    values = model("values")(torch.tensor(data["input_ids"])).logits[:, 0]
    number, labels = torch.tensor(data["bag_id"]), torch.tensor(data["labels"])
    means = torch.zeros(8).index_add(0, number, values) / 2
    expected = (means - torch.zeros(8).index_add(0, number, labels) / 2).square().mean()
    assert whole["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    for size, count in ((4, 4), (6, 3), (2, 8)):
        cut = take("aggregate", tmp_path, size, count)
        assert cut["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-5)
        torch.testing.assert_close(cut["gradient"], whole["gradient"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [3, 6])
def test_a_resumed_run_is_the_uninterrupted_one(steps, tmp_path):
    # an epoch has four steps
    options = {"max_steps": 10, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": steps}

    def trainer(folder):
        args = arguments(tmp_path / folder, 4, 1, **options)
        return AggregateTrainer(
            model=model("values"), args=args, train_dataset=bags(), loss="aggregate"
        )

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{steps}"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_bags_of_classes_are_shares_of_classes(tmp_path):
    data = dataset("classes")
    made = make_bags(data, 5, seed=3)
    number = torch.tensor(made["bag_id"])
    assert number.bincount().tolist() == [4, 4, 4, 4]
    known = dict(zip(map(tuple, data["input_ids"]), data["labels"], strict=True))
    own = torch.tensor([known[tuple(ids)] for ids in made["input_ids"]])
    shares = torch.tensor(made["labels"])
    for bag in range(4):
        counts = own[number == bag].bincount(minlength=3) / 4
        torch.testing.assert_close(shares[number == bag], counts.expand(4, 3))
    assert make_bags(data, 5, seed=3)["input_ids"] == made["input_ids"]
    assert make_bags(data, 5, seed=4)["input_ids"] != made["input_ids"]
    trainer = AggregateTrainer(
        model=model("classes"),
        args=arguments(tmp_path, 8, 2, per_device_eval_batch_size=8),
        train_dataset=made,
        eval_dataset=made,
        loss="aggregate",
        loss_kwargs={"base": "ce"},
    )
    logits = trainer.predict(made).predictions
    loss = get_loss("aggregate", base="ce").eval()
    expected = loss(torch.tensor(logits), shares, bag_id=number)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    # of single samples with labels of their own
    alone = torch.nn.functional.cross_entropy(torch.tensor(logits), own)
    singles = made.remove_columns(["bag_id", "labels"]).add_column("labels", own.tolist())
    assert trainer.evaluate(singles)["eval_loss"] == pytest.approx(alone.item(), rel=1e-5)
    trainer.train()


def test_a_regression_on_bags_learns(tmp_path):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 7, (360, 3), generator=draw)
    values = (ids < 4).float().mean(1)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "label": values.tolist()})
    options = {"max_steps": 100, "learning_rate": 0.01, "optim": "adamw_torch"}
    trainer = AggregateTrainer(
        model=model("values"),
        args=arguments(tmp_path, 36, 1, **options, logging_strategy="no"),
        train_dataset=make_bags(data, 3, seed=0),
        eval_dataset=data,
        loss="aggregate",
    )
    trainer.train()
    # on single samples, of which none had a label
    assert trainer.evaluate()["eval_loss"] < 0.2 * values.var().item()


def test_misuse_is_an_error(tmp_path):
    def make(data, **given):
        given = {"args": arguments(tmp_path, 4, 1), "loss": "aggregate", **given}
        return AggregateTrainer(model=model("values"), train_dataset=data, **given)

    data = bags()
    with pytest.raises(ValueError, match="'ce' does not know of bags"):
        AggregateTrainer(model=model("classes"), args=arguments(tmp_path, 4, 1), loss="ce")
    with pytest.raises(ValueError, match="no column of: an integer for each sample"):
        make(data.remove_columns(["bag_id"]))
    with pytest.raises(ValueError, match="bag 0 has 2 samples, and a batch 1"):
        make(data, args=arguments(tmp_path, 1, 1))
    labels = [*data["labels"][:-1], 9.0]
    other = data.remove_columns(["labels"]).add_column("labels", labels)
    with pytest.raises(ValueError, match=f"sample {ROWS - 1} has the label 9.0, and the first"):
        make(other)
    with pytest.raises(ValueError, match="'group_by_length' does not keep bags whole"):
        make(data, args=arguments(tmp_path, 4, 1, train_sampling_strategy="group_by_length"))
    with pytest.raises(ValueError, match="sort it by 'bag_id'"):
        make(data).evaluate(data)
