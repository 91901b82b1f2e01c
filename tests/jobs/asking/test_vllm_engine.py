"""The real engine (its CPU build) and prompts that it dies of."""

import asyncio

import pytest

from digr.config.interests import VllmMiner
from digr.interests.prompts import RESPONSE_SCHEMA, chat_messages
from digr.models.answers import AnswerForm
from jobs.asking.vllm_engine import Engine
from tests.tiny_models import make_model_that_dies

pytestmark = pytest.mark.vllm

FORM = AnswerForm("interests", RESPONSE_SCHEMA)


def _engine(folder):
    miner = VllmMiner(name="m", model=str(folder), on_cpu=True, max_model_len=1024, max_tokens=16)
    return Engine(miner, FORM)


def test_a_prompt_that_kills_the_engine_is_tried_alone_and_the_others_are_answered(tmp_path):
    # the worker ended itself and its batch went to a new one, for ever
    folder, poison = make_model_that_dies(tmp_path / "model")

    async def ask():
        engine = _engine(folder)
        texts = ["rod", "reel", f"hat {poison}", "lamp", "mug"]
        answers = await asyncio.gather(*(engine.ask(chat_messages("item", "text", text)) for text in texts))
        later = await engine.ask(chat_messages("item", "text", "rope"))
        engine.engine.shutdown()
        return answers, later

    answers, later = asyncio.run(ask())
    assert [answer.status for answer in answers] == [None, None, "error", None, None]
    assert answers[2].reason == "this prompt alone killed the engine"
    assert later.status is None and later.output_tokens == 16 and later.reason == "stopped at max_tokens"
