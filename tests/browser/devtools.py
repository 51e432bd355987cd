"""Drives headless Chromium through its pipe of the DevTools protocol; needs no other package.

The browser reads commands from its descriptor 3 and writes answers and events to 4, each a JSON
object that ends with a zero byte.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-quic", "--hide-scrollbars", "--remote-debugging-pipe",
    # Whatever a page might want from outside would fail to be found.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
INSIDE = ("file:", "data:", "blob:", "about:")


class Browser:
    """A running browser with one page, and what happened in it since it was opened.

    `requests` are the addresses that the page asked for, `errors` what the console or the page's
    scripts complained of.
    """

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        # The child must find its ends at 3 and 4, wherever they are here.
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", program, *OPTIONS, f"--user-data-dir={profile}",
             "about:blank"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._loaded = False
        target = next(
            t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"
        )
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(Exception):
            self._session = ""
            self.call("Browser.close")
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its answer; events that come meanwhile are noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(60)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer.get("result", {})
                return result
            self._note(answer)

    def open(self, address: str, *, width: int, height: int = 900) -> float:
        """Open an address in a window of this size; return the seconds until it was loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=False,
        )  # fmt: skip
        self._loaded = False
        self.call("Page.navigate", url="about:blank")
        self._until(lambda: self._loaded, "an empty page did not load")
        self._loaded = False
        self.requests.clear()
        self.errors.clear()
        start = time.monotonic()
        self.call("Page.navigate", url=address)
        self._until(lambda: self._loaded, "the page did not load")
        return time.monotonic() - start

    def run(self, script: str) -> Any:
        """Return the value of a script in the page; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 20, *, framed: bool = False) -> None:
        """Wait until the value of a script is true, in the page or in the frame within it."""
        end = time.monotonic() + seconds
        run = self.run_framed if framed else self.run
        while not run(script):
            assert time.monotonic() < end, f"never true: {script}; {self.errors}"
            time.sleep(0.05)

    def frames(self) -> list[str]:
        """Addresses of the frames within the page."""
        tree = self.call("Page.getFrameTree")["frameTree"]
        return [child["frame"]["url"] for child in tree.get("childFrames", [])]

    def run_framed(self, script: str) -> Any:
        """Return a script's value on the document of the page's frame; None while it has none.

        Its scripts' own names are not seen: the page outside may have no right to them.
        """
        tree = self.call("Page.getFrameTree")["frameTree"]
        children = tree.get("childFrames", [])
        if not children:
            return None
        frame = children[0]["frame"]["id"]
        try:
            world = self.call("Page.createIsolatedWorld", frameId=frame)["executionContextId"]
            answer = self.call(
                "Runtime.evaluate", expression=script, returnByValue=True, contextId=world
            )
        except RuntimeError:  # it went while the frame took another address
            return None
        return answer["result"].get("value")

    def outside(self) -> list[str]:
        """Addresses asked for that are not in the page's own folder or the page itself."""
        return [address for address in self.requests if not address.startswith(INSIDE)]

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Move, press or release the left button: `kind` is Moved, Pressed or Released."""
        down = kind != "Moved"
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y,
                  button="left" if down else "none", buttons=1, clickCount=int(down))  # fmt: skip

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a PNG of the window, or of the whole page at its width."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def shot_of(self, selector: str, path: Path) -> None:
        """Write a PNG of one element."""
        box = self.run(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
            "return [r.x + scrollX, r.y + scrollY, r.width, r.height]; })()"
        )
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True))
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True,
                            clip={**clip, "scale": 1})  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def _until(self, done: Callable[[], bool], failure: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not done():
            left = end - time.monotonic()
            assert left > 0, failure
            self._note(self._receive(left))

    def _receive(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0))
            assert ready, f"the browser said nothing for {seconds:.0f} s"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        value: dict[str, Any] = json.loads(message)
        return value

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(params["exceptionDetails"])[:500])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.errors.append(str([a.get("value") for a in params["args"]])[:500])
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.errors.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
