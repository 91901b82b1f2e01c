"""`digr serve` from its start to Ctrl-C, in a Ray of its own."""

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from serve.client import Client
from serve.run import EDGE_VARIABLE
from tests.patience import CEILING_SECONDS, wait_until

pytestmark = pytest.mark.ray


def test_a_run_is_served_on_the_port_that_was_asked_for_until_ctrl_c(tiny_run, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in (EDGE_VARIABLE, "RAY_ADDRESS")}
    command = [sys.executable, "-m", "serve.run", tiny_run.root, "beam_width=7", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        ready = f"serving {tiny_run.root} at http://127.0.0.1:{port}; Ctrl-C stops it"
        said = (tmp_path / "log").read_text
        wait_until(lambda: ready in said() or server.poll() is not None, said)
        assert server.poll() is None, said()
        client = Client(f"http://127.0.0.1:{port}", timeout_seconds=CEILING_SECONDS)
        assert [version.beam_width for version in client.models().data] == [7]
        assert len(client.recommend(["item05"], k=7)) == 7
        below = psutil.Process(server.pid).children(recursive=True)
        started = [process for process in below if process.name() == "raylet"]
        assert [process.environ()[EDGE_VARIABLE] for process in started] == ["serve.edge:middlewares"]
        server.send_signal(signal.SIGINT)
        assert server.wait(CEILING_SECONDS) == 0
        wait_until(lambda: not any(process.is_running() for process in started))
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
