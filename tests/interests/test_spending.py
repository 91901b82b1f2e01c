"""A budget holds back the worst case of what is in flight, uses what is left, and stops without giving an answer up."""

import doctest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from digr.config.interests import OpenAIJudge, OpenAIMiner, VllmJudge
from digr.interests import spending
from digr.interests.spending import Budget, Spending, cost_usd, progress_text, worst_case


def _batch(*names, tokens=10.0, usd=0.0):
    return {name: Spending(tokens, usd) for name in names}


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(spending).failed == 0


def test_a_batch_waits_for_what_is_in_flight_and_the_rest_of_the_budget_is_used():
    budget = Budget(Spending(50, 0), Spending(5, 0))
    assert budget.admit(_batch("a", "b")) == ["a", "b"]
    assert budget.admit(_batch("c", "d", "e")) is None
    budget.settle(["a", "b"], Spending(8, 0))
    # 13 are spent, three more may spend 30
    assert budget.admit(_batch("c", "d", "e")) == ["c", "d", "e"] and not budget.stopped
    budget.settle(["c", "d", "e"], Spending(12, 0))
    assert budget.admit(_batch("f", "g", "h", "i")) == ["f", "g"] and budget.stopped
    assert budget.admit(_batch("j", tokens=0.1)) == [] and budget.spent == Spending(25, 0)


def test_money_is_capped_too_and_no_cap_holds_nothing_back():
    budget = Budget(Spending(0, 1.0), Spending(10**9, 0.5))
    assert budget.admit(_batch("a", "b", usd=0.3)) == ["a"] and budget.stopped
    assert Budget(Spending(), Spending()).admit(_batch("a", tokens=1e12, usd=1e6)) == ["a"]


def test_a_batch_that_is_run_again_after_a_lost_worker_is_let_through_again():
    budget = Budget(Spending(20, 0), Spending())
    assert budget.admit(_batch("a", "b")) == ["a", "b"] == budget.admit(_batch("a", "b"))
    budget.settle(["a"], Spending(3, 0))
    assert budget.admit(_batch("c", "d")) is None


@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0, 1)), max_size=30), st.integers(0, 300))
def test_what_is_spent_never_exceeds_the_cap_where_answers_keep_to_their_worst_case(batches, cap):
    budget = Budget(Spending(cap, 0), Spending())
    for number, (size, share) in enumerate(batches):
        admitted = budget.admit(_batch(*(f"{number}-{index}" for index in range(size))))
        if admitted is None:
            budget.settle(list(budget.in_flight), Spending(10 * share * len(budget.in_flight), 0))
    budget.settle(list(budget.in_flight), Spending(10 * len(budget.in_flight), 0))
    assert not cap or budget.spent.tokens <= cap + 1e-6


def test_the_worst_case_is_the_chat_and_the_longest_answer():
    prices = {"usd_per_million_input_tokens": 1e6, "usd_per_million_output_tokens": 2e6}
    miner = OpenAIMiner(name="m", base_url="http://x/v1", model="x", max_tokens=100, **prices)
    text = worst_case([{"role": "system", "content": "x" * 300}, {"role": "user", "content": "é" * 300}], miner)
    assert text == Spending(100 + 100 + 200 + 100, 400 + 200)
    parts = [{"type": "image_url", "image_url": {"url": "data:x"}}, {"type": "text", "text": "x" * 300}]
    assert worst_case([{"role": "user", "content": parts}], miner).tokens == 100 + 1500 + 100 + 100


def test_the_judge_costs_what_its_endpoint_asks_for_and_one_token_of_an_engine():
    # the judge's prices were accepted and ignored
    judge = OpenAIJudge(base_url="http://x/v1", model="x", usd_per_million_input_tokens=2.0, usd_per_million_output_tokens=4.0)
    assert cost_usd(judge, 1e6, 1e6) == 6.0
    engine = VllmJudge(model="x")
    assert cost_usd(engine, 1e6, 1e6) == 0.0 and worst_case([{"role": "user", "content": ""}], engine) == Spending(101, 0.0)


def test_progress_says_nothing_it_does_not_know():
    assert progress_text(0, 10, 0.0, Spending()) == "0/10, 0.0 items/s, time left unknown"
    assert progress_text(10, 10, 4.0, Spending()) == "10/10, 2.5 items/s"
    # the first ones came after 46 s of loading the model: 40 in 4 s since, 150 left
    assert progress_text(50, 200, 50.0, Spending(), first=(10, 46.0)) == "50/200, 1.0 items/s, 15 s left"
    assert progress_text(10, 200, 46.0, Spending(), first=(10, 46.0)) == "10/200, 0.2 items/s, time left unknown"
    assert np.isfinite(float(progress_text(1, 1, 0.0, Spending()).split()[1]))
