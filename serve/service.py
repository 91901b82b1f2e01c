"""What one replica serves: its versions, and how it decodes."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
from jaxtyping import Bool

from digr.policy.beam import Recommendation
from serve.catalogue import ServedRun
from serve.decoding import Job
from serve.problems import deadline_passed, unknown_model
from serve.schemas import Version, Versions
from serve.settings import AppArguments


class Service:
    """The versions of a replica; requests read it, and each goes on with the version it began with."""

    def __init__(
        self,
        arguments: AppArguments,
        versions: dict[str, ServedRun],
        decode: Callable[[Job], Awaitable[Recommendation | Exception]],
    ) -> None:
        self.arguments = arguments
        self.versions = versions
        self.default = arguments.default_model or next(iter(versions))
        self.previous: str | None = None
        self._decode = decode

    def version(self, name: str | None) -> tuple[str, ServedRun]:
        """Return a version by name, the default one for None.

        Raises:
            ProblemError: there is none of this name.
        """
        name = name or self.default
        if name not in self.versions:
            raise unknown_model(name, sorted(self.versions))
        return name, self.versions[name]

    async def rank(self, run: ServedRun, prompt: str, beam_width: int, allowed: Bool[np.ndarray, " N"] | None) -> Recommendation:
        """Decode one prompt, together with others that wait.

        Raises:
            ProblemError: the deadline passed.
        """
        seconds = self.arguments.deadline_seconds
        job = Job(run, prompt, beam_width, allowed, time.monotonic() + seconds)
        try:
            found = await asyncio.wait_for(self._decode(job), seconds)
        except TimeoutError:
            raise deadline_passed(seconds) from None
        if isinstance(found, TimeoutError):
            raise deadline_passed(seconds)
        if isinstance(found, Exception):
            raise found
        return found

    def describe(self) -> Versions:
        """List the versions."""
        versions = [self._describe(name, run) for name, run in self.versions.items()]
        return Versions(data=versions, previous=self.previous)

    def _describe(self, name: str, run: ServedRun) -> Version:
        return Version(
            id=name,
            created=int(run.loaded_at),
            default=name == self.default,
            policy=run.policy_name,
            policy_digest=run.policy_digest,
            num_items=run.trie.num_items,
            num_new_items=run.num_new_items,
            level_sizes=list(run.trie.level_sizes),
            max_history=run.max_history,
            beam_width=self.arguments.beam_width,
        )
