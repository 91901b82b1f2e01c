"""Many changes of the catalogue as JSON lines: chunk by chunk, each with one call of the encoder and one entry of the journal."""

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from serve.contract.change_problems import invalid_line, not_a_line, too_many_lines
from serve.contract.item_schemas import MAX_BULK, BulkResult
from serve.contract.problems import ProblemError
from serve.contract.schemas import ItemId
from serve.items.changing import change_catalogue
from serve.items.deciding import ItemRequest
from serve.service import Service

JSON_LINES = "application/x-ndjson"
CHUNK = 250
"""Lines that are encoded and written together."""
_ITEM_ID = TypeAdapter[str](ItemId)


async def change_lines(service: Service, body: bytes) -> list[BulkResult]:
    """Do what each line asks for, in order; return one result per line that is not empty.

    Lines of a chunk that cannot be written now, because the encoder or the state is away, fail together.

    Raises:
        ProblemError: there are more lines than `MAX_BULK`.
    """
    lines = [(number, line) for number, line in enumerate(body.splitlines(), 1) if line.strip()]
    if len(lines) > MAX_BULK:
        raise too_many_lines(MAX_BULK)
    starts = range(0, len(lines), CHUNK)
    return [result for start in starts for result in await _change_chunk(service, lines[start : start + CHUNK])]


async def _change_chunk(service: Service, lines: list[tuple[int, bytes]]) -> list[BulkResult]:
    requests, results = dict[int, ItemRequest](), dict[int, BulkResult]()
    for number, line in lines:
        try:
            requests[number] = read_line(line)
        except ProblemError as error:
            results[number] = BulkResult(line=number, status="failed", problem=error.problem)
    try:
        outcomes = await change_catalogue(service, list(requests.values()))
        found = [(each.status, each.problem.problem if each.problem else None) for each in outcomes]
    except ProblemError as error:
        found = [("failed", error.problem) for _ in requests]
    for (number, wanted), (status, problem) in zip(requests.items(), found, strict=True):
        results[number] = BulkResult(line=number, item_id=wanted.item_id, status=status, problem=problem)
    return [results[number] for number, _ in lines]


def read_line(line: bytes) -> ItemRequest:
    """Read one line.

    Raises:
        ProblemError: it is not a JSON object with an item_id.
    """
    try:
        facts = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise not_a_line(f"it cannot be read as JSON: {error}") from None
    if not isinstance(facts, dict) or "item_id" not in facts:
        raise not_a_line('it must be an object such as {"item_id": "kettle-7", "price": 31.5}')
    try:
        item_id = _ITEM_ID.validate_python(facts.pop("item_id"), strict=True)
    except ValidationError as error:
        raise invalid_line(error, "item_id") from None
    if facts.pop("delete", False) is True:
        return ItemRequest("delete", item_id, {})
    return ItemRequest("upsert", item_id, facts)
