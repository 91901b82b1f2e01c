"""The base of every section of the config: an unknown key is an error, and a config never changes once it is read."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Refuse unknown keys and later changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
