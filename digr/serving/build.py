"""Write what replicas read of a run into a folder of files that they map into memory.

A build depends on the artifacts of the run and on nothing that is added later. All replicas of a machine share one: the first
builds it, the others wait. It streams the interactions part by part.
"""

import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import uuid
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from digr import artifacts, partitions
from digr.artifacts import Store
from digr.data.ids import IdIndex, build_id_index
from digr.data.transitions import count_items, read_sequences
from digr.interests.canonical import load_canonical
from digr.policy.reasons import ItemInterests, index_interests
from digr.policy.user_interests import shown_interests
from digr.serving.facts import save_facts
from digr.serving.grown_trie import save_trie_arrays
from digr.serving.interest_search import save_interest_index
from digr.serving.mapped import save_array, save_texts
from digr.serving.tree import children_of, common_interests, places_below
from digr.serving.users import save_histories
from digr.sids.trie import SidTrie, build_trie, codes_of
from digr.tables import Owner, flat_interests

logger = logging.getLogger(__name__)

FORMAT = 3
"""Raise it when a file changes its form."""
SMALL_ROWS = 200_000
"""Interactions and items of a run that is built in the replica's own process; of a larger one another process builds, because
this one answers requests."""
KEEP_DAYS = 7.0
"""A build that no replica has had open for so long is removed when another one is made."""
SAMPLES, INTERESTS = 3, 3
"""Number of items and interests that are shown for each child of a prefix."""
_USED = ".used"
"""Suffix of the file that each process with an open build holds a shared lock of."""
_READ = ("items", "item_sids", "interest_labels", "interactions", "histories")


class BuildRequest(NamedTuple):
    """What a build is made of."""

    root: str
    variant: str
    max_history: int
    """Newest items of each user's history that are kept."""
    prompt_interests: int = 0
    """Number of a user's interests that prompts show."""
    max_text_chars: int = 0
    """Most characters of their text; without meaning if there are none."""

    @property
    def store(self) -> Store:
        """The run."""
        return Store(self.root, self.variant)

    def key(self) -> str:
        """Return a name that changes with everything that the build depends on.

        The digest of an artifact knows its inputs; the time of its manifest tells two builds in the same folder apart.
        """
        manifests = {name: artifacts.read_manifest(self.store, name) for name in (*_READ, "canonical_interests")}
        made = {name: (manifest.digest, _written(self.store, name)) for name, manifest in manifests.items() if manifest}
        return artifacts.digest_of({"format": FORMAT, "request": list(self), "made": made})


class Build:
    """A complete build; its folder stays as long as this object, or that of another process, lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        used = os.open(folder.with_suffix(_USED), os.O_RDWR | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, used)
        fcntl.flock(used, fcntl.LOCK_SH)
        os.utime(used)


def default_cache() -> Path:
    """Return the folder for builds of this user on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "digr" / "serving"


def open_build(request: BuildRequest, cache: Path) -> Build:
    """Return the build of a run; make it if no replica of this machine has yet, or wait for the one that does.

    Raises:
        ValueError: the run cannot be built; the message of the error that names what is wrong with it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / request.key()
    with folder.with_suffix(".building").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build = Build(folder)  # from here on nobody removes it
        if not folder.is_dir():
            _remove_unused(cache)
            _make(request, folder)
    return build


def _make(request: BuildRequest, folder: Path) -> None:
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed; whoever builds holds the lock
        shutil.rmtree(left)
    draft, begun = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}"), time.monotonic()
    draft.mkdir()
    rows = sum(artifacts.require(request.store, name).rows or 0 for name in ("items", "interactions"))
    try:
        if rows <= SMALL_ROWS:
            build_files(request, draft)
        else:
            logger.info("%s: building the files that replicas map, once for this machine", request.root)
            _build_apart(request, draft)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    logger.info("%s: built %s in %.1f s", request.root, folder, time.monotonic() - begun)


def _build_apart(request: BuildRequest, draft: Path) -> None:
    command = [sys.executable, "-m", "digr.serving.build", json.dumps(request._asdict()), str(draft)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # Ray may have put the program into this path only
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise ValueError(f"{request.root}: its files for serving cannot be built: {reason}")


def _remove_unused(cache: Path) -> None:
    for path in cache.glob(f"*{_USED}"):
        folder = path.with_suffix("")
        if not folder.is_dir() or time.time() - path.stat().st_mtime < KEEP_DAYS * 86_400:
            continue
        with path.open("a") as lock, suppress(BlockingIOError):  # another process has it open
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def _written(store: Store, name: str) -> int:
    fs, path = artifacts.filesystem_of(store.uri(name))
    found = fs.get_file_info([f"{path}/{file}" for file in (artifacts.MANIFEST, artifacts.OLD_MANIFEST)])
    return max(info.mtime_ns or 0 for info in found)


def build_files(request: BuildRequest, folder: Path) -> None:
    """Write all files of a build into an empty folder."""
    store = request.store
    coded = artifacts.read_table(store, "item_sids")
    level_sizes = artifacts.require(store, "item_sids").facts["level_sizes"]
    trie = build_trie(coded["item_id"].combine_chunks(), codes_of(coded, len(level_sizes)), level_sizes)
    save_trie_arrays(folder, trie)
    index = build_id_index(trie.item_ids)
    popular = _by_popularity(store, index, index.find(coded["item_id"]))
    del coded
    _save_items(folder, store, index, popular)
    standing = np.empty(len(popular), np.int64)
    standing[popular] = np.arange(len(popular))
    interests = _save_interests(folder, store, trie, standing)
    _save_root(folder, trie, interests, standing)
    parts = (
        partitions.read_part(store, "interactions", part, ["user_id", "position", "item_id"])
        for part in partitions.parts_of(store, "user")
    )
    users = save_histories(folder, parts, index, request.max_history)
    config = {"policy": {"prompt_interests": request.prompt_interests}, "tasks": {"max_text_chars": request.max_text_chars}}
    shown = shown_interests(config, partial(_read_labels, store, "user"))
    save_texts(folder, "user-interests", shown.of_users(users).fill_null(""))


def _by_popularity(store: Store, index: IdIndex, place: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Return places, the most popular in training first.

    Args:
        place: places of the items in the order of `item_sids`.
    """
    counts = count_items(read_sequences(store, index.find), len(index))
    shuffled = np.random.default_rng(0).permutation(len(counts))  # ties are never broken by id
    return place[np.lexsort((shuffled, -counts[place]))]


def _save_items(folder: Path, store: Store, index: IdIndex, popular: Int[np.ndarray, " N"]) -> None:
    items = artifacts.read_table(store, "items")
    row = build_id_index(items["item_id"]).find_all(index.ids, "items")
    save_array(folder, "row-of-place", row.astype(np.int32))
    save_array(folder, "place-of-row", index.find(items["item_id"]).astype(np.int32))
    save_facts(folder, items.take(pa.array(row)), popular)


def _save_interests(folder: Path, store: Store, trie: SidTrie, popularity: Int[np.ndarray, " N"]) -> ItemInterests:
    canonical = load_canonical(store)
    interests = index_interests(flat_interests(_read_labels(store, "item")), trie.item_ids, canonical)
    save_texts(folder, "interest-texts", interests.texts)
    save_array(folder, "interest-keys", interests.keys)
    save_array(folder, "interest-offsets", interests.offsets.astype(np.int64))
    save_texts(folder, "interest-others", interests.others)
    if canonical is not None:
        save_texts(folder, "canonical-phrases", canonical.phrases)
        save_array(folder, "canonical-group", canonical.group.astype(np.int32))
        save_texts(folder, "canonical-names", canonical.names)
    save_interest_index(folder, interests, popularity)
    return interests


def _save_root(folder: Path, trie: SidTrie, interests: ItemInterests, popularity: Int[np.ndarray, " N"]) -> None:
    """Write what is shown of each child of the tree's root, because all items are below it."""
    root = children_of(trie, [])
    common = common_interests(interests, root.spans, INTERESTS)
    places = [places_below(spans) for spans in root.spans]
    samples = [below[np.argsort(popularity[below])[:SAMPLES]].tolist() for below in places]
    children = {code: {"samples": some, "interests": told} for code, some, told in zip(root.codes, samples, common, strict=True)}
    (folder / "root.json").write_text(json.dumps(children))


def _read_labels(store: Store, owner: Owner) -> pa.Table:
    return artifacts.read_table(store, "interest_labels", ["owner", "owner_id", "interests"], owner=[owner])


if __name__ == "__main__":
    os.nice(10)  # requests go first
    build_files(BuildRequest(**json.loads(sys.argv[1])), Path(sys.argv[2]))
