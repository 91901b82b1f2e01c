"""Write and read a stage's output: Parquet parts or model files, and a manifest that is written last.

Without `_manifest.json` an artifact does not exist, so a reader never sees an incomplete one, and a killed job is simply run
again. Everything works on local folders and on `s3://bucket/prefix`.
"""

import itertools
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from digr.files import common_schema as common_schema
from digr.files import digest_of as digest_of
from digr.files import digest_of_files as digest_of_files
from digr.files import filesystem_of as filesystem_of
from digr.files import is_remote as is_remote
from digr.files import list_parts as list_parts
from digr.files import open_part as open_part
from digr.files import open_parts as open_parts
from digr.files import part_name as part_name
from digr.files import remove as remove
from digr.tables import Owner, check_table, conform, schema_version, table_spec

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
        "metrics",
        "report",
        "seed_comparison",
    }
)
"""Artifacts that all variants of a run share; all others are made once per variant."""

MANIFEST = "_manifest.json"
"""Readers of Parquet folders skip names that begin with `_`."""
OLD_MANIFEST = "manifest.json"
"""Name of the manifest in older runs; it is read, and removed by the next build."""
JOB_OF = {
    "items": "prepare_data",
    "interactions": "prepare_data",
    "histories": "prepare_data",
    "interest_responses": "mine_interests",
    "interests": "mine_interests",
    "classifier": "train_classifier",
    "interest_labels": "label_interests",
    "interest_verdicts": "label_interests",
    "item_embeddings": "embed_items",
    "canonical_interests": "build_neighbours",
    "item_neighbours": "build_neighbours",
    "ranking_index": "build_neighbours",
    "ranking_examples": "train_ranker",
    "ranker": "train_ranker",
    "towers": "train_towers",
    "item_sids": "build_sids",
    "quantiser": "build_sids",
    "codebook_sweep": "tune_codebooks",
    "policy_examples": "train_sft",
    "policy_sft": "train_sft",
    "policy_grpo": "train_grpo",
    "recommendations": "recommend",
    "metrics": "evaluate",
    "report": "evaluate",
    "seed_comparison": "compare_runs",
}
COMMANDS = {
    "run": "pipeline",
    "data prepare": "prepare_data",
    "interests mine": "mine_interests",
    "interests label": "label_interests",
    "train classifier": "train_classifier",
    "embed": "embed_items",
    "neighbours": "build_neighbours",
    "sids build": "build_sids",
    "sids tune": "tune_codebooks",
    "train sft": "train_sft",
    "train grpo": "train_grpo",
    "train ranker": "train_ranker",
    "train towers": "train_towers",
    "recommend": "recommend",
    "evaluate": "evaluate",
    "compare": "compare_runs",
}
"""Words of `digr` -> the job that they run, which is `python -m jobs.<job>` too."""


class StaleArtifact(ValueError):
    """An artifact exists but was made from other inputs or choices."""


class Manifest(BaseModel):
    """Description of an artifact and of its origin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    schema_version: int = Field(default_factory=lambda values: schema_version(values["name"]))
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
        """Digest of inputs, config and seed."""
        return digest_of({"name": self.name, "v": self.schema_version, "i": self.inputs, "c": self.config, "s": self.seed})

    @property
    def digest(self) -> str:
        """Digest of the result: of the request, the rows and the facts."""
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


def read_manifest(store: Store, name: str) -> Manifest | None:
    """Return the manifest of an artifact, or None if the artifact does not exist.

    Raises:
        ValueError: the manifest is invalid; StaleArtifact if the table has another schema version; names the job to run.
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
        raise ValueError(f"{store.uri(name)}/{file}: not a valid manifest: {error.errors()[0]['msg']}") from error
    expected = schema_version(manifest.name)
    if manifest.schema_version != expected:
        raise StaleArtifact(
            f"{store.uri(name)}: found version {manifest.schema_version} of the schema of {manifest.name}, this program expects "
            f"{expected}; run `{command_of(manifest.name)} --force` to rebuild it"
        )
    return manifest


def command_of(name: str) -> str:
    """Return the command that makes an artifact, for messages."""
    job = JOB_OF.get(name.split("/")[0], "pipeline")
    return f"digr {next(words for words, made in COMMANDS.items() if made == job)} CONFIG"


def require(store: Store, name: str) -> Manifest:
    """Return the manifest of an artifact that must exist.

    Raises:
        ValueError: it does not exist; the message names the job that makes it.
    """
    manifest = read_manifest(store, name)
    if manifest is None:
        raise ValueError(f"{store.uri(name)}: artifact {name} does not exist; run `{command_of(name)}` first")
    return manifest


def check_lineage(store: Store, name: str, inputs: Iterable[str] | None = None) -> None:
    """Check that the inputs of an existing artifact have not been rebuilt since it was made.

    For example, a policy knows only the semantic IDs that it was trained on. Inputs that no longer exist are not compared.

    Args:
        name: an artifact of this store, or one of a variant as `variants/<variant>/<name>`.
        inputs: artifacts to compare; by default all inputs of the artifact.

    Raises:
        ValueError: an input differs; the message has both digests and the job to run.
    """
    manifest = require(store, name)
    if name.startswith("variants/"):
        _, variant, name = name.split("/", 2)
        store = store._replace(variant=variant)
    for item in manifest.inputs if inputs is None else inputs:
        there = read_manifest(store, item)
        if there is not None and there.digest != manifest.inputs.get(item, there.digest):
            raise ValueError(
                f"{store.uri(name)}: made from {item} {manifest.inputs[item]}, but {store.uri(item)} is now {there.digest}; "
                f"run `{command_of(name)} --force` to rebuild it from that"
            )


def begin(store: Store, name: str) -> str:
    """Remove the files of an earlier build, and return the empty folder's address.

    The manifest is removed first: from that moment the artifact does not exist.
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


def write_table(store: Store, name: str, table: pa.Table, starts: Sequence[str] = ("",)) -> int:
    """Check a whole table and write it in parts by ranges of ids; return its number of rows.

    Args:
        starts: first id of each part; that of the first part is "" (see `digr.partitions`). With several parts, the rows must
            be sorted by these ids.
    """
    table, spec, uri = check_table(name, table, store.uri(name)), table_spec(name), store.uri(name)
    folders = {uri: table}
    if spec.about == "both":
        folders = {f"{uri}/{owner}": table.filter(pc.equal(table["owner"], owner)) for owner in get_args(Owner)}
    for folder, rows in folders.items():
        cuts = [0]
        if len(starts) > 1:
            ids = rows[spec.range_column].combine_chunks()
            assert pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py() is not False, f"{name} must be sorted by its ids"
            cuts = pc.search_sorted(ids, pa.array(starts, pa.string())).to_pylist()
        for number, (start, end) in enumerate(itertools.pairwise([*cuts, len(rows)])):
            with open_part(f"{folder}/{part_name(number)}", rows.schema) as writer:
                writer.write_table(rows.slice(start, end - start), row_group_size=65_536)
    return len(table)


def dataset_of(store: Store, name: str) -> pads.Dataset:
    """Open the Parquet parts of an existing artifact lazily."""
    require(store, name)
    return open_parts(store.uri(name), table_spec(name).schema)


def read_table(store: Store, name: str, /, columns: Sequence[str] | None = None, **filters: Iterable[str]) -> pa.Table:
    """Read an artifact into memory, optionally only some columns, and only rows whose columns have one of the given values.

    Every part is opened, whatever the filter: use it once per job, and `digr.partitions` to read batch by batch.
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
    """Stream an artifact, or its rows from `start` to before `stop`, in batches.

    Parts without any of these rows are not read.
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
    """Yield a local folder with an existing artifact's files: its own folder, or a temporary copy of a remote one."""
    require(store, name)
    with fetch_files(store.uri(name)) as folder:
        yield folder


@contextmanager
def fetch_files(uri: str, prefix: str = "") -> Iterator[Path]:
    """Yield a local folder with the files of `uri`; of a remote one, a copy of the files whose names begin with `prefix`."""
    fs, path = filesystem_of(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = fs.get_file_info(pafs.FileSelector(path)) if prefix else []
        wanted = {each.path: f"{folder}/{each.base_name}" for each in found if each.base_name.startswith(prefix)}
        for source, target in (wanted if prefix else {path: folder}).items():
            pafs.copy_files(source, target, source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
        yield Path(folder)


def is_current(store: Store, wanted: Manifest) -> bool:
    """Whether an artifact exists and was made from exactly these inputs, config and seed.

    Raises:
        StaleArtifact: it exists but was made from others; the message has the differences and the job to run.
    """
    found = read_manifest(store, wanted.name)
    if found is None:
        return False
    if found.request == wanted.request:
        return True
    raise StaleArtifact(
        f"{store.uri(wanted.name)}: has digest {found.request}, but this config and these inputs give {wanted.request} "
        f"(different: {', '.join(_differences(found, wanted))}); run `{command_of(wanted.name)} --force` to "
        f"rebuild it, or choose another run.dir"
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
