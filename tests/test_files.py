"""Which file system an address stands for."""

import time

import pyarrow.fs as pafs
import pytest

from digr.files import filesystem_of, is_remote


@pytest.mark.parametrize("uri", ["gs://bucket/x", "abfs://box/x", "hdfs://host/x", "http://host/x", "S3://bucket/x", "://x"])
def test_an_address_that_is_not_known_is_refused_at_once(uri):
    """gs:// looked for credentials until somebody lost patience."""
    start = time.monotonic()
    scheme = uri.partition("://")[0]
    with pytest.raises(ValueError, match=f"{uri}: {scheme}:// is not known; expected a local path or one of s3://, file://"):
        filesystem_of(uri)
    assert time.monotonic() - start < 5


def test_local_paths_and_file_addresses_are_local(tmp_path):
    (tmp_path / "a").write_text("x")
    for uri in (str(tmp_path / "a"), f"file://{tmp_path}/a"):
        filesystem, path = filesystem_of(uri)
        assert isinstance(filesystem, pafs.LocalFileSystem) and path == str(tmp_path / "a")
        assert not is_remote(uri)
