"""Which addresses of images may be read: this protects the machine and its network, and is in no digest."""

import ipaddress
from typing import Literal

from pydantic import Field, field_validator

from digr.config.base import Section

Scheme = Literal["https", "http", "s3", "data", "file"]


class ImagesConfig(Section):
    """Where images may be read from, and how long and how large at most."""

    schemes: tuple[Scheme, ...] = ("https", "http", "s3", "data", "file")
    """Kinds of addresses that are read; "file" includes plain paths."""
    hosts: tuple[str, ...] = Field(("*",), min_length=1)
    """Hosts of http(s) addresses that are asked, with `*` for any letters, such as "*.cdn.example"."""
    private_networks: tuple[str, ...] = ()
    """Networks such as "10.1.0.0/16" that are asked although they are not public; cloud metadata never is."""
    buckets: tuple[str, ...] = Field(("*",), min_length=1)
    """S3 buckets that are read, with `*` for any letters."""
    folders: tuple[str, ...] = ()
    """Folders of this disk below which files are read, besides those of the run and of its data."""
    max_seconds: float = Field(20.0, gt=0, le=600)
    """Longest time to fetch one image, from the look-up of its host to the last byte."""
    max_pixels: int = Field(25_000_000, ge=256, le=100_000_000)
    """Largest image that is decoded, width x height, with each pixel of a WebP counted twice; that takes up to 8 bytes each."""

    @field_validator("private_networks")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f'{error}; expected networks such as "10.1.0.0/16" or "fd12::/16"') from None
        return networks
