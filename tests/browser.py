"""Chromium without a screen, driven by its DevTools protocol, for tests of pages, which are skipped without it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip
AXE = [Path("node_modules/axe-core/axe.min.js"), Path("/usr/share/javascript/axe-core/axe.min.js")]


def axe_source() -> str:
    """The script of axe-core, from `npm install axe-core` or $AXE_CORE; the test is skipped without it."""

    places = [Path(os.environ["AXE_CORE"])] if os.environ.get("AXE_CORE") else AXE
    place = next((path for path in places if path.is_file()), None)
    if place is None:
        pytest.skip("no axe-core here: npm install --no-save axe-core")
    return place.read_text(encoding="utf-8")


class Page:
    """One page of a browser."""

    def __init__(self, socket: Any) -> None:
        self.socket, self._numbers, self.events = socket, itertools.count(1), list[dict[str, Any]]()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 10.0) -> None:
        """Wait until an expression holds."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"!!({script})"):
            assert time.monotonic() < end, f"never: {script}"
            time.sleep(0.02)

    def open(self, address: str) -> None:
        self.call("Page.enable")
        self.call("Network.enable")
        self.call("Log.enable")
        self.call("Runtime.enable")
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def press(self, key: str) -> None:
        """A key, as a person presses it."""
        named = {"ArrowRight": 39, "ArrowLeft": 37, " ": 32, "Enter": 13}
        code = named.get(key, ord(key[0].upper()))
        text = key if len(key) == 1 else "\r" if key == "Enter" else ""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if kind == "keyDown" and text else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def emulate(self, *, dark: bool = False, media: str = "", width: int = 1100, height: int = 900) -> None:
        """Another look: a dark scheme, print, or the width of a phone."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=media, features=scheme)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def shot(self, path: Path, whole: bool = False) -> None:
        """A picture of the page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))["data"]
        path.write_bytes(base64.b64decode(data))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def violations(self, axe: str) -> list[str]:
        """What axe-core finds wrong with the page."""
        self.evaluate(f"{axe};0")
        found = json.loads(self.evaluate("axe.run().then(r => JSON.stringify(r.violations))"))
        return [
            f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
            for one in found
            for node in one["nodes"]
        ]

    def complaints(self) -> list[str]:
        """Errors of the console, and addresses that were asked for beyond this machine."""
        lines = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                lines.append(str(event["params"]["exceptionDetails"]["text"]))
            if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                lines.append(str(event["params"]["entry"]["text"]))
            if event.get("method") == "Network.requestWillBeSent":
                address = event["params"]["request"]["url"]
                if not address.startswith(("file:", "data:", "http://127.0.0.1:", "blob:")):
                    lines.append(address)
        return lines


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a new browser, whose profile lies in a folder."""
    connect = pytest.importorskip("websockets.sync.client").connect
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    profile = folder / "browser"
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=log, stderr=log
        )
    try:
        port, end = profile / "DevToolsActivePort", time.monotonic() + 30
        while not port.exists() or not port.read_text().strip():
            assert time.monotonic() < end, (folder / "browser.log").read_text()
            time.sleep(0.05)
        number = port.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json") as answer:
            target = next(one for one in json.load(answer) if one["type"] == "page")
        with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(timeout=20)
