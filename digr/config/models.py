"""How the config names a pretrained model: a folder or hub name, its revision and its number format."""

from typing import Any, Literal

from pydantic import Field, model_validator

from digr.config.base import Section

Dtype = Literal["auto", "fp32", "bf16"]


class ModelConfig(Section):
    """A pretrained model; a plain string stands for its name alone."""

    name: str = ""
    """Local folder or Hugging Face hub name."""
    revision: str = ""
    """Branch, tag or commit of a hub model; empty is its main branch. A commit needs no look-up on the hub."""
    dtype: Dtype = "auto"
    """Number format of the weights: "auto" is bf16 on a GPU and fp32 on a CPU."""

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class EncoderConfig(ModelConfig):
    """A sentence encoder."""

    name: str = Field("minilm", min_length=1)
    """"minilm" (from its Python package), a local folder or a hub name."""
    max_tokens: int = Field(128, ge=8, le=32_768)
    """Longest text, tokens; a longer text is cut at its end."""
    prompt: str = ""
    """Name of one of the model's own prompts, put before each text; empty takes the model's default, if it has one."""


class PairEncoderConfig(EncoderConfig):
    """The sentence encoder under the interest classifier."""

    max_tokens: int = Field(96, ge=8, le=32_768)
    """Longest item text, tokens; a longer text is cut at its end."""


class PhraseEncoderConfig(EncoderConfig):
    """The sentence encoder that compares phrases."""

    max_tokens: int = Field(64, ge=8, le=32_768)
    """Longest text, tokens; a longer text is cut at its end. Small, because an interest is a few words."""
