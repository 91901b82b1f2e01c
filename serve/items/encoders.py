"""The sentence encoders of a replica, each loaded when it is first needed."""

import functools

from digr.config.models import EncoderConfig
from digr.models.encoders import Encode, load_encoder


@functools.lru_cache(maxsize=4)
def get_encoder(encoder: EncoderConfig) -> Encode:
    """Return an encoder, on the CPU."""
    return load_encoder(encoder)
