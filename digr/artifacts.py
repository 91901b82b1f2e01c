"""Write and read a stage's output: Parquet parts or model files, and a manifest that is written last.

Without `_manifest.json` an artifact does not exist, so a reader never sees half of one, and a killed job is simply run
again. Everything works on a local folder and on `s3://bucket/prefix` alike.
"""

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from digr.tables import SCHEMA_VERSION, check_table, conform, table_spec

SHARED = frozenset(
    {
        "items",
        "interactions",
        "histories",
        "interest_responses",
        "interests",
        "classifier",
        "interest_labels",
        "interest_verdicts",
        "item_quality",
        "metrics",
    }
)
"""Artifacts that every variant of a run uses; all others are made once per variant."""

MANIFEST = "_manifest.json"
"""Readers of Parquet folders skip names that begin with `_`."""
OLD_MANIFEST = "manifest.json"
"""Its name in older runs; it is read, and goes with the next build."""
JOB_OF = {
    "items": "prepare_data",
    "interactions": "prepare_data",
    "histories": "prepare_data",
    "interest_responses": "mine_interests",
    "interests": "mine_interests",
    "classifier": "train_classifier",
    "interest_labels": "label_interests",
    "interest_verdicts": "label_interests",
    "item_quality": "label_interests",
    "item_embeddings": "embed_items",
    "item_sids": "build_sids",
    "quantiser": "build_sids",
    "codebook_sweep": "tune_codebooks",
    "policy_examples": "train_sft",
    "policy_sft": "train_sft",
    "policy_grpo": "train_grpo",
    "recommendations": "recommend",
    "metrics": "evaluate",
}


class StaleArtifact(ValueError):
    """An artifact exists but was made from other inputs or choices."""


class Manifest(BaseModel):
    """What an artifact is and what made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    schema_version: int = SCHEMA_VERSION
    rows: int | None = None
    rejected: dict[str, int] = {}
    facts: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    config: dict[str, Any] = {}
    seed: int = 0
    versions: dict[str, str] = {}
    seconds: float = 0.0

    @property
    def request(self) -> str:
        """Digest of what was asked: inputs, config and seed."""
        return digest_of({"name": self.name, "v": self.schema_version, "i": self.inputs, "c": self.config, "s": self.seed})

    @property
    def digest(self) -> str:
        """Digest of what was made: the request with its rows and facts."""
        return digest_of({"request": self.request, "rows": self.rows, "facts": self.facts})

    def without(self, keys: Sequence[str]) -> "Manifest":
        """Return a manifest whose config lacks some `section.key`s."""
        config = dict(self.config)
        for section, key in (key.split(".", 1) for key in keys):
            config[section] = {name: value for name, value in config[section].items() if name != key}
        return self.model_copy(update={"config": config})


class Store(NamedTuple):
    """The artifacts of one run, seen from one of its variants."""

    root: str
    variant: str = ""

    def uri(self, name: str) -> str:
        """Address of an artifact's folder."""
        shared = name.split("/")[0] in SHARED or not self.variant
        return f"{self.root.rstrip('/')}/{name}" if shared else f"{self.root.rstrip('/')}/variants/{self.variant}/{name}"

    def work_uri(self, name: str, request: str) -> str:
        """Address of the scratch folder (checkpoints) of a stage that may be killed and resumed."""
        return f"{self.uri(name)}.work-{request[:12]}"


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a local path or an s3:// address, and the path on it."""
    if "://" in uri:
        return pafs.FileSystem.from_uri(uri)
    return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())


def is_remote(uri: str) -> bool:
    """Whether an address is not on a local disk."""
    return not isinstance(filesystem_of(uri)[0], pafs.LocalFileSystem)


def digest_of(value: Any) -> str:
    """Digest of a JSON value, key order aside; 16 hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of_files(uri: str) -> str:
    """Digest of a file's bytes, or of all files below a folder by name and bytes.

    Raises:
        ValueError: nothing is there.
    """
    fs, path = filesystem_of(uri)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise ValueError(f"{uri}: no such file or folder")
    infos = [info] if info.is_file else fs.get_file_info(pafs.FileSelector(path, recursive=True))
    hasher = hashlib.sha256()
    for entry in sorted((entry for entry in infos if entry.is_file), key=lambda entry: entry.path):
        hasher.update(entry.path[len(path) :].encode() + b"\0")
        with fs.open_input_stream(entry.path) as stream:
            while chunk := stream.read(1 << 22):
                hasher.update(chunk)
    return hasher.hexdigest()[:16]


def read_manifest(store: Store, name: str) -> Manifest | None:
    """Return the manifest of an artifact, or None where the artifact does not exist.

    Raises:
        ValueError: the manifest is not one.
    """
    fs, path = filesystem_of(store.uri(name))
    found = fs.get_file_info([f"{path}/{file}" for file in (MANIFEST, OLD_MANIFEST)])
    there = [info.path for info in found if info.type != pafs.FileType.NotFound]
    if not there:
        return None
    with fs.open_input_stream(there[0]) as stream:
        text = stream.read()
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        file = Path(there[0]).name
        raise ValueError(f"{store.uri(name)}/{file}: not a manifest: {error.errors()[0]['msg']}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise ValueError(
            f"{store.uri(name)}: made with table schemas version {manifest.schema_version}, this is {SCHEMA_VERSION}"
        )
    return manifest


def require(store: Store, name: str) -> Manifest:
    """Return the manifest of an artifact that must exist.

    Raises:
        ValueError: it does not; the message names the job that makes it.
    """
    manifest = read_manifest(store, name)
    if manifest is None:
        job = JOB_OF.get(name.split("/")[0], "pipeline")
        raise ValueError(f"{store.uri(name)}: artifact {name} does not exist; run `python -m jobs.{job}` with this config first")
    return manifest


def begin(store: Store, name: str) -> str:
    """Remove what an earlier, unfinished or outdated build left, and return the empty folder's address.

    The manifest goes first: from that moment the artifact does not exist.
    """
    fs, path = filesystem_of(store.uri(name))
    for info in fs.get_file_info([f"{path}/{file}" for file in (MANIFEST, OLD_MANIFEST)]):
        if info.type != pafs.FileType.NotFound:
            fs.delete_file(info.path)
    if fs.get_file_info(path).type != pafs.FileType.NotFound:
        fs.delete_dir(path)
    fs.create_dir(path, recursive=True)
    return store.uri(name)


def commit(store: Store, manifest: Manifest) -> None:
    """Write the manifest, which makes the artifact exist; atomic on a local disk and on S3."""
    fs, path = filesystem_of(store.uri(manifest.name))
    text = manifest.model_dump_json(indent=2).encode()
    if isinstance(fs, pafs.LocalFileSystem):
        draft = f"{path}/.{MANIFEST}.{uuid.uuid4().hex}"
        Path(draft).write_bytes(text)
        Path(draft).replace(f"{path}/{MANIFEST}")
        return
    with fs.open_output_stream(f"{path}/{MANIFEST}") as stream:
        stream.write(text)


def write_table(store: Store, name: str, table: pa.Table) -> int:
    """Check a whole table and write it as one Parquet part; returns its rows."""
    table = check_table(name, table, store.uri(name))
    fs, path = filesystem_of(store.uri(name))
    fs.create_dir(path, recursive=True)
    pq.write_table(table, f"{path}/part-00000.parquet", filesystem=fs, row_group_size=65_536)
    return len(table)


def dataset_of(store: Store, name: str) -> pads.Dataset:
    """Open the Parquet parts of an existing artifact lazily."""
    require(store, name)
    return open_parts(store.uri(name), table_spec(name).schema)


def open_parts(uri: str, schema: pa.Schema | None = None) -> pads.Dataset:
    """Open all Parquet files below an address, in the order of their names; no file gives an empty table."""
    parts = list_parts(uri)
    if not parts:
        return pads.dataset((schema or pa.schema([])).empty_table())
    return pads.dataset(parts, filesystem=filesystem_of(uri)[0], format="parquet", schema=schema)


def list_parts(uri: str) -> list[str]:
    """Paths of all Parquet files below an address, sorted; the address itself if it is a file."""
    fs, path = filesystem_of(uri)
    if fs.get_file_info(path).is_file:
        return [path]
    entries = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(entry.path for entry in entries if entry.is_file and entry.path.endswith(".parquet"))


def read_table(store: Store, name: str, /, columns: Sequence[str] | None = None, **filters: Iterable[str]) -> pa.Table:
    """Read an artifact into memory, with some columns only, and only the rows whose column is among given values.

    Filters are pushed into the Parquet statistics. Item tables are written in the order of their ids, so a batch of
    ids touches few row groups and a worker can look up its own batch without a shuffle.
    """
    expression = None
    for column, values in filters.items():
        test = pads.field(column).isin(pa.array(list(values), pa.string()))
        expression = test if expression is None else expression & test
    table = dataset_of(store, name).to_table(columns=list(columns) if columns else None, filter=expression)
    return table if columns else conform(name, table, store.uri(name))


def iter_table(
    store: Store,
    name: str,
    columns: Sequence[str] | None = None,
    batch_rows: int = 65_536,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream an artifact, or its rows from `start` to before `stop`, in batches, so that memory does not grow with it.

    Parts that hold none of these rows are not read.
    """
    dataset = dataset_of(store, name)
    options: dict[str, Any] = {"columns": list(columns) if columns else None, "batch_size": batch_rows}
    if not start and stop is None:
        yield from dataset.to_batches(**options)
        return
    before = 0
    for part in dataset.get_fragments():
        num_rows = part.count_rows()
        if start < before + num_rows and (stop is None or before < stop):
            here = before
            for batch in part.to_batches(schema=dataset.schema, **options):
                first, last = max(0, start - here), len(batch) if stop is None else min(len(batch), stop - here)
                if first < last:
                    yield batch.slice(first, last - first)
                here += len(batch)
        before += num_rows


def put_files(store: Store, name: str, local: Path) -> None:
    """Copy the files below a local folder into an artifact."""
    fs, path = filesystem_of(store.uri(name))
    fs.create_dir(path, recursive=True)
    pafs.copy_files(str(local.absolute()), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)


@contextmanager
def local_files(store: Store, name: str) -> Iterator[Path]:
    """Give a local folder with an existing artifact's files: itself, or a temporary copy of a remote one."""
    require(store, name)
    fs, path = filesystem_of(store.uri(name))
    if isinstance(fs, pafs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        pafs.copy_files(path, folder, source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
        yield Path(folder)


def remove(uri: str) -> None:
    """Remove a folder if it is there."""
    fs, path = filesystem_of(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        if Path(path).exists():
            shutil.rmtree(path)
    elif fs.get_file_info(path).type != pafs.FileType.NotFound:
        fs.delete_dir(path)


def is_current(store: Store, wanted: Manifest) -> bool:
    """Whether an artifact exists and was made from just these inputs, config and seed.

    Raises:
        StaleArtifact: it exists but was made from others; the message says from which and what to run.
    """
    found = read_manifest(store, wanted.name)
    if found is None:
        return False
    if found.request == wanted.request:
        return True
    job = JOB_OF.get(wanted.name.split("/")[0], "pipeline")
    raise StaleArtifact(
        f"{store.uri(wanted.name)}: made as {found.request}, this config and these inputs give {wanted.request} "
        f"(different: {', '.join(_differences(found, wanted))}); run `python -m jobs.{job} ... --force` to rebuild it, "
        f"or choose another run.dir"
    )


def _differences(found: Manifest, wanted: Manifest) -> list[str]:
    names = []
    for part in ("inputs", "config"):
        left, right = _flatten(getattr(found, part)), _flatten(getattr(wanted, part))
        names += [
            f"{part[:-1] if part == 'inputs' else part} {key}"
            for key in sorted(left.keys() | right.keys())
            if left.get(key) != right.get(key)
        ]
    return names + (["seed"] if found.seed != wanted.seed else [])


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
