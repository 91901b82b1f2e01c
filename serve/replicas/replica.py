"""One replica beside its routes: what it repeats while it lives, and whether it is well. Ray Serve runs it in `serve.app`."""

import asyncio

from serve.middleware.callers import KeyRing
from serve.replicas.background import Background, in_own_thread
from serve.service import Service


class Replica:
    """Keeps a service and its keys up to date with the other replicas and with the files that people change."""

    def __init__(self, service: Service, keys: KeyRing) -> None:
        self.service, self.keys = service, keys
        self._background = Background(service.arguments.follow_seconds)

    def start(self) -> None:
        """Begin; a second time changes nothing. Needs a running event loop."""
        read_file = in_own_thread(self.keys.read_file)

        async def read_keys() -> None:
            self.keys.use(await read_file())

        self._background.start(
            follow=self.service.follow, follow_events=self.service.follow_events, read_keys=read_keys, report=self._report
        )

    async def _report(self) -> None:
        self.keys.share_rates(await self.service.report())

    def check_health(self) -> None:
        """Pass if this replica makes lists and follows the others.

        Raises:
            RuntimeError: it does not, and must be replaced.
        """
        if ended := self._background.ended():
            raise RuntimeError(f"the tasks {', '.join(ended)} have ended; see the log")
        if trouble := self.service.line.trouble():
            raise RuntimeError(trouble)

    async def stop(self) -> None:
        """End what is repeated, and the decoder; write what waits to be logged."""
        await self._background.stop()
        self.service.line.close()
        await asyncio.to_thread(self.service.close_logs)
