"""Miners that ask a language model: vLLM on this cluster, or an endpoint that speaks the OpenAI protocol."""

from ray.data import Dataset

from digr.config import Config
from digr.config.interests import OpenAIMiner, VllmMiner
from digr.interests.prompts import Owner


def answer_with_model(config: Config, owner: Owner, miner: VllmMiner | OpenAIMiner, missing: Dataset) -> Dataset:
    """Return the raw responses of a language model to the missing requests."""
    raise NotImplementedError
