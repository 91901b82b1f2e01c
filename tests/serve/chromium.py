"""A real Chromium without a window, spoken to by its DevTools protocol: what a user does, and what a screen reader is told."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.patience import CEILING_SECONDS, wait_until

FLAGS = [
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-gpu",
    "--window-size=1280,900",
    "--disable-dev-shm-usage",
]
OFFLINE = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-default-browser-check"]
KEYS = {
    "Enter": 13,
    "Tab": 9,
    "Escape": 27,
    "ArrowUp": 38,
    "ArrowDown": 40,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Home": 36,
    "End": 35,
    "Space": 32,
}


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = count(1)
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Run a command of the protocol; events that come meanwhile are kept."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=CEILING_SECONDS))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    def js(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{expression}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        shown = "document.body.innerText"
        wait_until(lambda: self.js(f"Boolean({expression})"), lambda: f"{expression}: {self.js(shown)}", pause_seconds=0.02)

    def open(self, url: str) -> Self:
        """Go to an address and wait for it to load."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")
        return self

    def text(self, selector: str) -> list[str]:
        """Return the text of every element that matches."""
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.textContent.trim())")

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        box = (
            f"(() => {{ const found = document.querySelector({json.dumps(selector)}); found.scrollIntoView({{block: 'center'}});"
        )
        box += " const {x, y, width, height} = found.getBoundingClientRect(); return [x + width / 2, y + height / 2]; })()"
        x, y = self.js(box)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select element."""
        self.js(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)}); found.value = {json.dumps(value)};"
            " found.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, *keys: str) -> None:
        """Press keys one after the other; `Shift+Tab` is one."""
        for key in keys:
            *modifiers, name = key.split("+")
            known = {"key": " " if name == "Space" else name, "code": name, "windowsVirtualKeyCode": KEYS[name]}
            known |= {"modifiers": 8 if "Shift" in modifiers else 0}
            text = {"Enter": "\r", "Space": " "}.get(name)
            self.call("Input.dispatchKeyEvent", type="keyDown", **known, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def accessible(self) -> list[tuple[str, str]]:
        """Return (role, name) of everything that a screen reader is told."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node["ignored"]]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]

    def screenshot(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Draw the page at a size, in a colour scheme, as PNG."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        time.sleep(0.2)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """Return what went wrong in the page: exceptions, console errors, refused by the content policy."""
        found = [json.dumps(event) for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        for event in self.events:
            if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(event["params"]["args"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"):
                found.append(event["params"]["entry"]["text"] + " " + event["params"]["entry"].get("url", ""))
        return found

    def requested(self) -> list[str]:
        """Return the address of every request that the page made."""
        sent = (event for event in self.events if event["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start Chromium with an empty profile, and end it."""
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = ["chromium", *FLAGS, *OFFLINE, *root, f"--user-data-dir={profile}", "about:blank"]
    with (profile / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            port = _port(profile / "DevToolsActivePort", process)
            target = httpx.put(f"http://127.0.0.1:{port}/json/new?about:blank", timeout=CEILING_SECONDS).json()
            with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()


def _port(file: Path, process: subprocess.Popen) -> int:
    def is_there() -> bool:
        return file.exists() and file.read_text().count("\n") > 0

    wait_until(lambda: is_there() or process.poll() is not None, (file.parent / "log").read_text)
    assert is_there(), f"Chromium did not start:\n{(file.parent / 'log').read_text()}"
    return int(file.read_text().splitlines()[0])
