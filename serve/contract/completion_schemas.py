"""The completion route in the form of OpenAI's API: semantic IDs as text."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from serve.contract.schemas import VersionName

MAX_PROMPTS, MAX_CHOICES = 16, 128

SidPrompt = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]


class CompletionRequest(BaseModel):
    """Ask for the semantic IDs that may follow a prompt of semantic IDs, such as `<a_1><b_2><c_3>`.

    The list is that of the beam search, so parameters of sampling have no effect; they are taken for clients that send
    them always.
    """

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    model: VersionName | None = None
    """One of `GET /v1/models`."""
    prompt: SidPrompt | Annotated[list[SidPrompt], Field(min_length=1, max_length=MAX_PROMPTS)]
    """History, oldest item first; or several."""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    """Choices per prompt, best first."""
    stream: Literal[False] = False


class Choice(BaseModel):
    """One semantic ID."""

    index: int
    text: str
    finish_reason: Literal["stop"] = "stop"
    logprobs: None = None
    score: float
    """Log-probability of the whole semantic ID."""
    item_id: str


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionReply(BaseModel):
    """Choices of all prompts, n of the first, then n of the second."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
