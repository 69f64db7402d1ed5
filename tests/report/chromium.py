"""A headless Chromium, spoken to over its DevTools protocol on two pipes: no driver and no port is needed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path

from k1.errors import K1Error

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Seconds without a word of the browser after which it counts as hanging; the machine may be busy with others.
PATIENCE = 300


def find_chromium() -> str:
    """The program: $CHROMIUM, else the first of the usual names on the PATH; raises `K1Error` if there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise K1Error("no Chromium is here; install it (Debian: apt-get install chromium) or name one in $CHROMIUM")
    return found


class Chromium:
    """A browser with one page, as a context; what it writes is in a temporary folder that goes with it."""

    def __enter__(self) -> "Chromium":
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._number = 0
        self._session: str | None = None
        self._received = b""
        self.events: list[dict] = []
        from_here, self._to = os.pipe()
        self._from, to_here = os.pipe()

        def take_pipes() -> None:
            # The protocol's own numbers; first out of the way, if a pipe has one of them.
            pipes = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 10) for pipe in (from_here, to_here)]
            for number, pipe in zip((3, 4), pipes):
                os.dup2(pipe, number)

        flags = ["--headless", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        # A browser of root has no sandbox; the page is our own.
        flags += ["--no-sandbox", f"--user-data-dir={self._folder.name}", "--force-color-profile=srgb", "about:blank"]
        self._process = subprocess.Popen(
            [find_chromium(), *flags], preexec_fn=take_pipes, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(from_here)
        os.close(to_here)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        os.close(self._to)
        os.close(self._from)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def call(self, method: str, **parameters: object) -> dict:
        """The result of a method of the protocol; raises `RuntimeError` if the browser refuses it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict:
        """The next message of the browser."""
        while b"\0" not in self._received:
            if not select.select([self._from], [], [], PATIENCE)[0]:
                raise TimeoutError(f"the browser has said nothing for {PATIENCE} s")
            received = os.read(self._from, 1 << 20)
            if not received:
                raise RuntimeError("the browser has ended")
            self._received += received
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Load a page at a width in CSS pixels, a phone's below 600, in the colour scheme `light` or `dark`."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, top: int, height: int, width: int) -> bytes:
        """A PNG of the part of the page that begins `top` pixels below its upper end."""
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        taken = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(taken["data"])
