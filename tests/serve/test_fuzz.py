"""The server answers every request, valid or not, and never with a 5xx."""

from benchmarks.serve_fuzz import ask_in_process, fuzz
from tests.serve.tiny_run import BEAM_WIDTH


def test_no_request_made_from_the_openapi_document_gets_a_5xx(tiny_run, tmp_path):
    """A small form of benchmarks/serve_fuzz.py."""
    document, send, item_ids = ask_in_process(tiny_run.root, str(tmp_path), BEAM_WIDTH)
    found = fuzz(document, send, item_ids, 32)
    assert found.failures == []
    assert sum(found.statuses.values()) == 32
    assert {200, 422} <= set(found.statuses)
