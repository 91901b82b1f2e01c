"""What one replica serves: its versions, the items added to them, and the line of requests that it decodes."""

import asyncio
import itertools
import logging
import math
import time
from contextlib import nullcontext
from typing import NamedTuple

from digr.artifacts import digest_of
from digr.serving.journal import Entry, Journal
from digr.serving.state import open_state
from serve.contract import problems
from serve.contract.change_problems import not_loaded_everywhere, state_not_reached
from serve.contract.schemas import ChangeDefault, ExperimentArm, Version, Versions
from serve.items.additions import VersionAdditions
from serve.items.catalogue import ServedRun, assemble, digests_of, read_run
from serve.items.encoders import get_encoder
from serve.items.images import ImageLimits, ItemImages
from serve.items.item_journal import MAX_NAMED, ItemJournal
from serve.lists.decoding import decode, warm_up
from serve.lists.experiments import ShadowSettings
from serve.lists.shadows import Shadows
from serve.lists.waiting import Decode, Line
from serve.live.events import Events
from serve.live.impressions import Impressions
from serve.replicas.board import Board, MemoryBoard
from serve.replicas.loaded import Replicas
from serve.replicas.metrics import Metrics
from serve.replicas.standing_aside import standing_aside
from serve.settings import AppArguments, LiveSettings, VersionSettings

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A version as it is now."""

    settings: VersionSettings
    digests: tuple[str, ...]
    run: ServedRun
    additions: VersionAdditions | None
    revision: tuple[int, int] = (0, 0)
    """That of the additions in the run."""


def _build_of(loaded: Loaded) -> str:
    """Return what tells a version's build from others."""
    return digest_of(list(loaded.digests))


def _extended(loaded: Loaded, items: ItemJournal) -> Loaded:
    """Return a version with the added and changed items; the same object if there is nothing new."""
    additions = loaded.additions
    if additions is None:
        return loaded
    additions.follow(items)
    if additions.revision == loaded.revision:
        return loaded
    run = assemble(loaded.run.tables, additions.additions(), additions.changes(items))
    return loaded._replace(run=run, revision=additions.revision)


class Service:
    """The versions of a replica. A request keeps the version that it began with, even if that version is replaced."""

    def __init__(
        self,
        arguments: AppArguments,
        device: str = "cpu",
        replica: str = "0",
        *,
        decode: Decode = decode,
        board: Board | None = None,
    ) -> None:
        self.arguments = arguments
        state = open_state(arguments.state_dir) if arguments.state_dir else None
        self.state = state
        self.metrics = Metrics(replica)
        self.board: Board = board or MemoryBoard()
        """Where replicas report; without one given, this replica is alone."""
        self._replica = replica
        self.versions: dict[str, Loaded] = {}
        self.failed: dict[str, str] = {}
        """Versions that could not be loaded, with the reason; an earlier load of the same version stays in use."""
        self.is_ready = False
        self._live = LiveSettings()
        self.line = Line(decode, arguments.max_pending, arguments.deadline_seconds, self.metrics)
        limits = ImageLimits(arguments.max_image_bytes, arguments.max_image_side, arguments.deadline_seconds)
        self.images = ItemImages(arguments.images, limits)
        self.events = Events(arguments, self.metrics) if arguments.events_dir else None
        is_logged = arguments.events_dir and arguments.impressions == "on"
        self.impressions = Impressions(arguments.events_dir, self.metrics) if is_logged else None
        self.shadows = Shadows(self.metrics)
        self._device = device
        self.changing, self._configuring = asyncio.Lock(), asyncio.Lock()
        self.replicas = Replicas(state, replica, time.monotonic) if state else None
        self.items = ItemJournal(state) if state else None
        """The journal of the catalogue; None where nothing can be changed."""
        self._choices = Journal(state, "default") if state else None
        self._num_choices = 0
        self._choice: dict[str, str] = {}
        self._set_aside: dict[str, str] = {}

    async def configure(self, live: LiveSettings) -> None:
        """Load versions that are new, then drop those that are no longer configured.

        Meanwhile, the previous versions answer requests. A version that cannot be loaded is named in `failed`; its earlier
        load, if there is one, stays in use.

        Raises:
            ValueError: the default version cannot be loaded, and no other version is loaded yet.
        """
        fresh, failed = dict[str, Loaded](), dict[str, str]()
        async with self._configuring:
            for name, settings in live.models.items():
                try:
                    loaded = await asyncio.to_thread(self._load, settings, self.versions.get(name))
                    fresh |= {name: loaded} if loaded else {}
                except (ValueError, OSError) as error:
                    logger.error("version %s cannot be loaded: %s", name, error)
                    failed[name] = str(error)
            async with self.changing:
                kept = {name: loaded for name, loaded in self.versions.items() if name in live.models}
                versions = {name: found for name in live.models if (found := fresh.get(name) or kept.get(name))}
                if live.default not in versions:
                    if not self.versions:
                        raise ValueError(f"serve: {live.default}: {failed[live.default]}")
                    versions[self.default] = self.versions[self.default]  # stays in use
                self.versions, self.failed, self._live = versions, failed, live
            await self.follow()
            if self.events:
                await self.events.follow()
            self.is_ready = True

    def _load(self, settings: VersionSettings, before: Loaded | None) -> Loaded | None:
        """Load a version; return None if it is loaded already."""
        with standing_aside(self.line.is_idle) if self.versions else nullcontext():
            return self._load_beside(settings, before)

    def _load_beside(self, settings: VersionSettings, before: Loaded | None) -> Loaded | None:
        digests = digests_of(settings)
        if before and before.settings == settings:
            if before.digests == digests:
                return None
            raise ValueError(
                f"{settings.run_dir}: was built again in place while it is served, and the build that was loaded stays in use; "
                f"build every run in a folder of its own, and name that folder as a version"
            )
        tables = read_run(settings, self._device)
        if digests_of(settings) != digests:
            raise ValueError(
                f"{settings.run_dir}: was built again while it was read; wait until the build has ended, then try again"
            )
        if self.state and self.items:
            additions = VersionAdditions(tables, settings, self.state, get_encoder)
            additions.follow(self.items)
            run = assemble(tables, additions.additions(), additions.changes(self.items))
            loaded = Loaded(settings, digests, run, additions, additions.revision)
        else:
            loaded = Loaded(settings, digests, assemble(tables), None)
        warm_up(loaded.run, self.arguments.beam_width, self.arguments.max_pending)
        return loaded

    @property
    def default(self) -> str:
        """Name of the default version: the choice of `change_default`, until the configuration names another default."""
        chosen = self._choice.get("model") if self._choice.get("configured") == self._live.default else None
        if chosen in self.versions:
            return chosen
        return self._live.default if self._live.default in self.versions else next(iter(self.versions))

    @property
    def previous(self) -> str | None:
        """Name of the version that was the default before the last choice."""
        before = self._choice.get("previous")
        return before if before in self.versions and self._choice.get("model") == self.default else None

    def version(self, name: str | None) -> tuple[str, ServedRun]:
        """Return a version by name; None returns the default.

        Raises:
            ProblemError: no version has this name, or none is loaded yet.
        """
        if not self.versions:
            raise problems.not_ready()
        name = name or self.default
        if name not in self.versions:
            raise problems.unknown_model(name, sorted(self.versions))
        return name, self.versions[name].run

    def arm_of(self, user_id: str | None) -> ExperimentArm | None:
        """Return the arm of a user; None outside of an experiment, or if the arm's version is not loaded."""
        experiment = self._live.experiment
        if experiment is None or user_id is None:
            return None
        arm = experiment.arm_of(user_id)
        return ExperimentArm(experiment=experiment.name, arm=arm) if arm in self.versions else None

    @property
    def shadow(self) -> ShadowSettings | None:
        """The version that also decodes requests, if it is loaded and lists are logged."""
        chosen = self._live.shadow if self.impressions else None
        return chosen if chosen and chosen.model in self.versions else None

    def recent_places(self, run: ServedRun, user_id: str) -> list[int]:
        """Return the items of a user's events since a run's newest interaction, oldest first; unknown items are left out."""
        items = self.events.states.items_of(user_id, run.tables.newest) if self.events else []
        return [place for place in run.facts.ids.find(items).tolist() if place >= 0] if items else []

    async def follow(self) -> None:
        """Apply what other replicas changed or chose."""
        async with self.changing:
            await self.follow_locked()

    async def follow_locked(self) -> None:
        """Do as `follow`; the caller holds `changing`."""
        if self.items is None or self._choices is None:
            return
        await asyncio.to_thread(self.items.read)
        for name, loaded in self.versions.items():
            self.versions = self.versions | {name: await asyncio.to_thread(_extended, loaded, self.items)}
        for entry in await asyncio.to_thread(self._choices.read, self._num_choices):
            self._num_choices = entry.number
            self._choice = self._read_choice(entry) or self._choice
        if self.replicas is not None:
            await asyncio.to_thread(self.replicas.tell, {name: _build_of(loaded) for name, loaded in self.versions.items()})

    def _read_choice(self, entry: Entry) -> dict[str, str] | None:
        """Return a choice of the default version; set aside what is none."""
        value = entry.value or {}
        choice = {name: value.get(name) for name in ("model", "previous", "configured")}
        if all(isinstance(name, str) for name in choice.values()):
            return {name: str(chosen) for name, chosen in choice.items()}
        if len(self._set_aside) < MAX_NAMED:
            self._set_aside[entry.name] = entry.reason or "it names no default version"
        return None

    async def report(self) -> int:
        """Report what this replica counts; return how many replicas there are."""
        return await self.board.report(self._replica, self.metrics.own())

    async def follow_events(self) -> None:
        """Read other replicas' events, and let finished hours of the logs become Parquet."""
        if self.events and await self.events.tick() and self.impressions:
            await asyncio.to_thread(self.impressions.build_parts)

    def close_logs(self) -> None:
        """Write what waits to be logged; call it last."""
        for each in (self.events, self.impressions):
            if each:
                each.close()

    async def change_default(self, change: ChangeDefault) -> Versions:
        """Choose the default version for all replicas; the choice survives restarts.

        Raises:
            ProblemError: there is no such version, or none to go back to; a live replica does not have it after
                `promote_seconds`; or the state cannot be reached.
        """
        try:
            return await self._change_default(change)
        except OSError as error:
            raise state_not_reached() from error

    async def _change_default(self, change: ChangeDefault) -> Versions:
        if self._choices is None or self.replicas is None:
            raise problems.no_state_dir()
        await self.follow()
        name = change.model if change.action == "promote" else self.previous
        if name is None:
            raise problems.nothing_to_choose(change.action)
        self.version(name)
        if name != self.default:
            await self._wait_for_all(name, self.replicas)
            choice = {"model": name, "previous": self.default, "configured": self._live.default}
            await asyncio.to_thread(self._choices.append, choice, self._num_choices)
            await self.follow()
        return self.describe()

    async def _wait_for_all(self, name: str, replicas: Replicas) -> None:
        """Wait until every live replica has a version."""
        limit, pause = self.arguments.promote_seconds, self.arguments.follow_seconds
        for left in reversed(range(math.ceil(limit / pause) + 1)):
            self.version(name)  # a new configuration may have taken it away meanwhile
            lacking = await asyncio.to_thread(replicas.lacking, name, _build_of(self.versions[name]))
            if not lacking:
                return
            if left:
                await asyncio.sleep(pause)
                await self.follow()
        raise not_loaded_everywhere(name, lacking, limit)

    def describe(self) -> Versions:
        """List the versions.

        Raises:
            ProblemError: no version is loaded yet.
        """
        self.version(None)
        versions = [self._describe(name, loaded) for name, loaded in self.versions.items()]
        set_aside = self._set_aside | (self.items.set_aside if self.items else {})
        return Versions(data=versions, previous=self.previous, failed=self.failed, set_aside=set_aside)

    def _describe(self, name: str, loaded: Loaded) -> Version:
        run, additions = loaded.run, loaded.additions
        return Version(
            id=name,
            created=int(run.tables.loaded_at),
            default=name == self.default,
            policy=run.tables.policy_name,
            policy_digest=run.tables.policy_digest,
            ranker="missing" if loaded.settings.ranker == "on" and run.ranker is None else loaded.settings.ranker,
            num_items=run.trie.num_items,
            num_new_items=run.num_new_items,
            num_hidden_items=0 if run.listed is None else int((~run.listed).sum()),
            waiting=additions.waiting if additions else None,
            refused_items=dict(itertools.islice(additions.refused.items(), MAX_NAMED)) if additions else {},
            level_sizes=list(run.trie.level_sizes),
            currencies=list(run.facts.currencies),
            max_history=run.max_history,
            beam_width=self.arguments.beam_width,
        )
