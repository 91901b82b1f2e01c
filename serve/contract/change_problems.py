"""Problems of requests that change the catalogue or the default version."""

from collections.abc import Sequence

from pydantic import ValidationError

from serve.contract.problems import ProblemError


def item_exists(item_id: str) -> ProblemError:
    """Say that another item has this id."""
    detail = f"item {item_id!r} is in the catalogue with other content; choose another id, or change it by PATCH /v1/items/{{id}}"
    return ProblemError("item-exists", 409, "The item exists", detail, fields=["item_id"])


def interests_stay(item_id: str, interests: Sequence[str]) -> ProblemError:
    """Say that an item's interests cannot change."""
    detail = f"item {item_id!r} keeps its semantic ID and its interests ({', '.join(interests)[:300] or 'none'}); give the same"
    return ProblemError("interests-stay", 409, "The interests cannot change", detail, fields=["interests"])


def too_many_added(limit: int) -> ProblemError:
    """Say that the run must be built again before more items can be added."""
    detail = f"{limit} items were added since the run; run the pipeline again with them (sids.keep_from keeps all semantic IDs)"
    return ProblemError("too-many-added", 409, "Too many new items", detail)


def too_many_changed(limit: int) -> ProblemError:
    """Say that the run must be built again before more items can be changed."""
    detail = f"{limit} items were changed or deleted since the run; run the pipeline again with the catalogue of today"
    return ProblemError("too-many-changed", 409, "Too many changes", detail)


def no_code_left(item_id: str, reason: str) -> ProblemError:
    """Say why the default version cannot recommend the new item."""
    detail = f"item {item_id!r} is not added, because the default version cannot recommend it: {reason}"
    return ProblemError("no-code-left", 409, "No semantic ID left", detail)


def no_vectors(reason: str) -> ProblemError:
    """Say that a new item cannot be encoded now."""
    detail = f"nothing was changed, try again later: {reason[:500]}"
    return ProblemError("no-vectors", 503, "New items cannot be encoded now", detail, headers={"Retry-After": "5"})


def state_not_reached() -> ProblemError:
    """Say that the state cannot be read or written."""
    detail = "state_dir cannot be read or written now, the log says why; the same request may be sent again"
    return ProblemError("state-not-reached", 503, "The state cannot be reached", detail, headers={"Retry-After": "5"})


def too_many_writers() -> ProblemError:
    """Say that other replicas were faster again and again."""
    detail = "other changes came first again and again; nothing of this one was written, try again later"
    return ProblemError("too-many-writers", 503, "Too many changes at once", detail, headers={"Retry-After": "1"})


def image_not_allowed(cause: str) -> ProblemError:
    """Say which images an item may have."""
    detail = f"image_uri is not allowed: {cause}"[:1000]
    return ProblemError("image-not-allowed", 422, "This image is not allowed", detail, fields=["image_uri"])


def invalid_line(error: ValidationError, field: str = "the line") -> ProblemError:
    """Name the fields of a line that break the contract; `field` is the one that was read."""
    found = [(".".join(map(str, each["loc"])) or field, each["msg"]) for each in error.errors(include_url=False)]
    detail = "; ".join(f"{field}: {message}" for field, message in found[:20])
    fields = list(dict.fromkeys(field for field, _ in found))[:20]
    return ProblemError("invalid-request", 422, "The request does not follow the contract", detail, fields=fields)


def not_a_line(cause: str) -> ProblemError:
    """Say why a line of a bulk is no item."""
    return ProblemError("invalid-json", 400, "The line is not a JSON object with an item_id", cause)


def too_many_lines(limit: int) -> ProblemError:
    """Say how many lines a bulk may have."""
    return ProblemError("too-many-lines", 413, "Too many lines", f"a bulk may have {limit} lines; send the others in another one")


def not_json_lines(found: str) -> ProblemError:
    """Say in which form a bulk comes."""
    detail = f"the body must be JSON lines with Content-Type: application/x-ndjson, found {found[:100]!r}"
    return ProblemError("wrong-media-type", 415, "Not JSON lines", detail)


def not_loaded_everywhere(name: str, lacking: Sequence[str], seconds: float) -> ProblemError:
    """Name the replicas that do not have a version."""
    detail = f"{name!r} is not loaded on {', '.join(lacking[:20])} after {seconds:g} s; see `failed` of GET /v1/models there"
    return ProblemError("not-loaded-everywhere", 409, "Not all replicas have the version", detail, fields=["model"])
