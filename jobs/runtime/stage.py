"""Run a stage: build its artifacts unless they exist and match, and write the manifest last."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from digr import artifacts
from digr.artifacts import Manifest, StaleArtifact, Store
from digr.config import Config
from digr.config.models import ModelConfig
from digr.models.loading import weights_digest
from jobs.runtime.progress import BARS
from jobs.runtime.session import Options, log

VERSIONED = ("digr", "torch", "ray", "transformers", "pyarrow")


class Output(NamedTuple):
    """Rows and facts of an artifact that a build wrote."""

    rows: int | None = None
    rejected: Mapping[str, int] = {}
    facts: Mapping[str, Any] = {}


def store_of(config: Config) -> Store:
    """Return the artifacts of the configured run and variant, with an absolute path if the folder is local.

    Workers of Ray Train and Ray Serve have other working directories.
    """
    return store_at(config.run.dir, config.run.variant)


def store_at(root: str, variant: str = "") -> Store:
    """Return the artifacts of a run by its folder, see `store_of`."""
    return Store(root if artifacts.is_remote(root) else artifacts.filesystem_of(root)[1], variant)


def trained_policies(config: Config, options: Options, evidence: Sequence[str] = ("policy_grpo",)) -> list[str]:
    """Return the run's policies, "sft" and possibly "grpo"; log why GRPO is left out.

    Args:
        evidence: artifacts of which one exists if GRPO has run; a dry run assumes it.
    """
    store, grpo = store_of(config), config.grpo.enabled
    if grpo and (options.dry_run or any(artifacts.read_manifest(store, name) for name in evidence)):
        return ["sft", "grpo"]
    if grpo:
        log("policy_grpo", f"left out: {store.uri('policy_grpo')} does not exist; run `digr train grpo CONFIG` to train it")
    elif not config.run.variant:
        log("policy_grpo", "left out: grpo.enabled = false")
    return ["sft"]


def run_stage(
    config: Config,
    options: Options,
    *,
    outputs: Sequence[str],
    sections: Sequence[str],
    build: Callable[[Store, str], Mapping[str, Output]],
    inputs: Sequence[str] = (),
    files: Mapping[str, str] = {},
    models: Mapping[str, ModelConfig] = {},
    keep: Sequence[str] = (),
    may_change: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the artifacts of a stage, unless they exist and match; return the job's summary.

    Args:
        outputs: artifacts that the stage makes; they are committed after all are written.
        sections: config sections that decide the result, for the manifest and the digest.
        build: writes the outputs; gets the store and the address of a scratch folder that survives a kill, and returns the
            description of each output.
        inputs: artifacts that it reads, which must exist.
        files: name -> address of external files that it reads; their content enters the digest.
        models: config key -> pretrained model that it reads; the weights enter the digest.
        keep: outputs whose parts of an earlier, unfinished build are kept and continued.
        may_change: `section.key`s that may differ when a killed build is resumed in the same scratch folder.

    With `--force` (`options.force` "all") nothing of an earlier build is reused: the scratch folder is cleared.

    Raises:
        ValueError: an input is missing or older than its own inputs; StaleArtifact if an output was made from other inputs
            or settings.
    """
    store, stage = store_of(config), outputs[0]
    for name in () if options.dry_run else inputs:
        artifacts.check_lineage(store, name)
    dumped = config.model_dump(mode="json")
    wanted = [
        Manifest(
            name=name,
            inputs={item: _input_digest(store, item, options) for item in inputs}
            | {f"file {key}": artifacts.digest_of_files(uri) for key, uri in files.items()}
            | {f"model {key}": weights_digest(model, key) for key, model in models.items()},
            config={section: dumped[section] for section in sections},
            seed=config.run.seed,
        )
        for name in outputs
    ]
    if options.force != "all" and all(_is_current(store, manifest, options) for manifest in wanted):
        log(stage, "up to date, skipped")
        return {"stage": stage, "status": "skipped", "outputs": {name: store.uri(name) for name in outputs}}
    if options.dry_run:
        log(stage, f"would build {', '.join(outputs)}")
        return {"stage": stage, "status": "would build", "outputs": {name: store.uri(name) for name in outputs}}
    log(stage, "started")
    start = time.monotonic()
    for name in outputs:
        if name not in keep:
            artifacts.begin(store, name)
    work = store.work_uri(stage, wanted[0].without(may_change).request)
    if options.force == "all":
        artifacts.remove(work)
    made = build(store, work)
    BARS.end(stage)
    seconds = round(time.monotonic() - start, 3)
    versions = {name: version(name) for name in VERSIONED} | {"python": platform.python_version()}
    for manifest in wanted:
        update = made[manifest.name]._asdict() | {"versions": versions, "seconds": seconds}
        artifacts.commit(store, Manifest.model_validate(manifest.model_dump() | update))
    artifacts.remove(work)
    log(stage, f"done in {seconds:.1f} s: " + ", ".join(f"{name} {made[name].rows or ''}".strip() for name in outputs))
    return {
        "stage": stage,
        "status": "built",
        "seconds": seconds,
        "outputs": {name: store.uri(name) for name in outputs},
        "rows": {name: made[name].rows for name in outputs},
        "facts": {name: dict(made[name].facts) for name in outputs},
    }


def _input_digest(store: Store, name: str, options: Options) -> str:
    if options.dry_run and artifacts.read_manifest(store, name) is None:
        return "not built yet"
    return artifacts.require(store, name).digest


def _is_current(store: Store, manifest: Manifest, options: Options) -> bool:
    try:
        return artifacts.is_current(store, manifest)
    except StaleArtifact:
        if options.force == "stale" or options.dry_run:
            return False
        raise
