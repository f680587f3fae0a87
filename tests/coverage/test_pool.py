"""Items that misbehave cost their own result and nothing else."""

import sys

import pytest

from hf_softext.coverage.pool import Failure, run_isolated
from tests.coverage.work import behave

# bytes: what the process has mapped already, and some
ROOM = 8 << 30


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and processor time")
def test_an_item_that_breaks_its_process_costs_only_its_own_result():
    items = ["a", "segfault", "b", "exit", "c", "error", "d", "spin", "e", "memory", "f"]
    results = dict(run_isolated(behave, items, seconds=1, memory=ROOM))
    assert list(results) == items
    reasons = {k: v.reason for k, v in results.items() if isinstance(v, Failure)}
    assert reasons == {
        "segfault": "its process ended with SIGSEGV",
        "exit": "its process ended with exit status 3",
        "error": "LookupError: first line",
        "spin": "took more than 1 s of processor time",
        "memory": "MemoryError: ",
    }
    # one process serves until an item breaks it
    process = {item: results[item][1] for item in "abcdef"}
    assert process["c"] == process["d"]
    assert process["e"] == process["f"]
    assert len({process[item] for item in "abce"}) == 4


def test_an_item_that_sleeps_is_stopped_by_the_clock(monkeypatch):
    monkeypatch.setattr("hf_softext.coverage.pool._PATIENCE", 2)
    results = dict(run_isolated(behave, ["sleep", "a"], seconds=1))
    assert results["sleep"] == Failure("took more than 2 s")
    assert results["a"][0] == "a"


def test_several_processes_share_the_items():
    results = dict(run_isolated(behave, range(40), jobs=2))
    assert {item: answer[0] for item, answer in results.items()} == {i: i for i in range(40)}
    assert len({pid for _, pid in results.values()}) == 2


def test_no_items_start_no_process():
    assert list(run_isolated(behave, [])) == []
