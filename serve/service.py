"""What one replica serves: its versions, the items added to them, and the line of requests that it decodes."""

import asyncio
import logging
from pathlib import Path
from typing import Any, NamedTuple

from digr.artifacts import Store
from digr.serving.journal import Journal
from digr.serving.users import newest_interaction
from serve import problems
from serve.additions import ItemList, VersionAdditions
from serve.board import Board, MemoryBoard
from serve.catalogue import ServedRun, assemble, digests_of, read_run
from serve.decoding import decode, warm_up
from serve.encoders import get_encoder
from serve.events import Events
from serve.experiments import ShadowSettings
from serve.images import ImageLimits, ItemImages
from serve.impressions import Impressions
from serve.item_schemas import AddedItem, NewItem
from serve.metrics import Metrics
from serve.schemas import ChangeDefault, ExperimentArm, Version, Versions
from serve.settings import AppArguments, LiveSettings, VersionSettings
from serve.shadows import Shadows
from serve.waiting import Decode, Line

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A version as it is now."""

    settings: VersionSettings
    digests: tuple[str, ...]
    run: ServedRun
    additions: VersionAdditions | None
    newest: int | None
    """Time of the run's newest interaction, milliseconds since 1970; later events come on top."""


def _extended(loaded: Loaded, items: list[dict[str, Any]]) -> Loaded:
    """Return a version with the added items; the same object if there are no new ones."""
    if loaded.additions is None or not loaded.additions.follow(items):
        return loaded
    return loaded._replace(run=assemble(loaded.run.tables, loaded.additions.additions()))


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
        self.events = Events(arguments, self.metrics) if arguments.events_dir else None
        is_logged = arguments.events_dir and arguments.impressions == "on"
        self.impressions = Impressions(arguments.events_dir, self.metrics) if is_logged else None
        self.shadows = Shadows(self.metrics)
        limits = ImageLimits(arguments.max_image_bytes, arguments.max_image_side, arguments.deadline_seconds)
        self.images = ItemImages(arguments.images, limits)
        self._device = device
        self._changing, self._configuring = asyncio.Lock(), asyncio.Lock()
        state_dir = Path(arguments.state_dir) if arguments.state_dir else None
        self._state_dir = state_dir
        self._items: ItemList | None = ItemList(state_dir) if state_dir else None
        self._choices = Journal(state_dir / "default") if state_dir else None
        self._num_choices = 0
        self._choice: dict[str, str] = {}

    async def configure(self, live: LiveSettings) -> None:
        """Load versions that are new or were built again, then drop those that are no longer configured.

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
            async with self._changing:
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
        digests = digests_of(settings)
        if before and (before.settings, before.digests) == (settings, digests):
            return None
        tables, additions = read_run(settings, self._device), None
        if self._state_dir and self._items:
            additions = VersionAdditions(tables, settings, self._state_dir, get_encoder)
            additions.follow(self._items.items)
        run = assemble(tables, additions.additions() if additions else None)
        warm_up(run, self.arguments.beam_width, self.arguments.max_pending)
        newest = newest_interaction(Store(settings.run_dir, settings.variant)) if self.events else None
        return Loaded(settings, digests, run, additions, newest)

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

    def recent_places(self, name: str, user_id: str) -> list[int]:
        """Return the items of a user's events since a version's newest interaction, oldest first; unknown items are left out."""
        loaded = self.versions[name]
        items = self.events.states.items_of(user_id, loaded.newest) if self.events else []
        return [place for place in loaded.run.facts.ids.find(items).tolist() if place >= 0] if items else []

    async def follow(self) -> None:
        """Apply what other replicas added or chose."""
        if self._items is None or self._choices is None:
            return
        async with self._changing:
            await asyncio.to_thread(self._items.read)
            for name, loaded in self.versions.items():
                self.versions = self.versions | {name: await asyncio.to_thread(_extended, loaded, self._items.items)}
            choices = await asyncio.to_thread(self._choices.read, self._num_choices)
            self._num_choices += len(choices)
            self._choice = choices[-1] if choices else self._choice

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
            ProblemError: there is no such version, or none to go back to.
        """
        if self._choices is None:
            raise problems.no_state_dir()
        await self.follow()
        name = change.model if change.action == "promote" else self.previous
        if name is None:
            raise problems.nothing_to_choose(change.action)
        self.version(name)
        if name != self.default:
            choice = {"model": name, "previous": self.default, "configured": self._live.default}
            await asyncio.to_thread(self._choices.append, choice, self._num_choices)
            await self.follow()
        return self.describe()

    async def add_item(self, item: NewItem) -> AddedItem:
        """Add an item to all versions; adding the same item again changes nothing.

        Raises:
            ProblemError: another item has this id, too many items were added, or the default version has no code left.
        """
        if self._items is None:
            raise problems.no_state_dir()
        await self.follow()
        wanted, earlier = item.model_dump(), self._items.by_id.get(item.item_id)
        name, run = self.version(None)
        if (earlier is not None and earlier != wanted) or (earlier is None and run.facts.ids.find([item.item_id])[0] >= 0):
            raise problems.item_exists(item.item_id)
        if earlier is None:
            if len(self._items.items) >= self.arguments.max_added_items:
                raise problems.too_many_added(self.arguments.max_added_items)
            await asyncio.to_thread(self._items.add, wanted)
            await self.follow()
            if self._items.by_id[item.item_id] != wanted:  # another replica was faster
                raise problems.item_exists(item.item_id)
        sids = {name: loaded.additions.sid_of(item.item_id) for name, loaded in self.versions.items() if loaded.additions}
        additions = self.versions[name].additions
        if sids.get(name) is None and additions:
            raise problems.no_code_left(item.item_id, additions.refused.get(item.item_id, ""))
        return AddedItem(item_id=item.item_id, sids={name: sid for name, sid in sids.items() if sid}, is_new=earlier is None)

    def describe(self) -> Versions:
        """List the versions.

        Raises:
            ProblemError: no version is loaded yet.
        """
        self.version(None)
        versions = [self._describe(name, loaded) for name, loaded in self.versions.items()]
        return Versions(data=versions, previous=self.previous, failed=self.failed)

    def _describe(self, name: str, loaded: Loaded) -> Version:
        run = loaded.run
        return Version(
            id=name,
            created=int(run.tables.loaded_at),
            default=name == self.default,
            policy=run.tables.policy_name,
            policy_digest=run.tables.policy_digest,
            ranker="missing" if loaded.settings.ranker == "on" and run.ranker is None else loaded.settings.ranker,
            num_items=run.trie.num_items,
            num_new_items=run.num_new_items,
            level_sizes=list(run.trie.level_sizes),
            currencies=list(run.facts.currencies),
            max_history=run.max_history,
            beam_width=self.arguments.beam_width,
        )
