"""A headless Chromium that says what a page logs and asks for, by the DevTools protocol over a pair of pipes.

The protocol: https://chromedevtools.github.io/devtools-protocol/. Messages are JSON, each ended by a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    f"no Chromium was found ($CHROMIUM, {', '.join(NAMES)}), and these tests look at pages in one; "
    "on Debian: .ci/browser as root, or apt-get install chromium; or set CHROMIUM=/path/to/chromium"
)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60.0  #: for an answer
QUIET_S = 0.3  #: without an event, after which a page has said all that it says by itself


class BrowserError(Exception):
    """Chromium is not there, refuses, or does not answer."""


@dataclass
class Seen:
    """What a page did since it was opened: requests with their kind, and what was logged with its level."""

    requests: list[tuple[str, str]] = field(default_factory=list)
    logged: list[tuple[str, str]] = field(default_factory=list)


def find() -> str:
    """The program. Raises BrowserError, which says how to get one."""
    named = os.environ.get("CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise BrowserError(MISSING)
    return found


class Chromium:
    """A browser with one tab; a context manager.

    Parameters
    ----------
    profile : an empty folder for what the browser keeps
    """

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._last = 0
        self._buffer = b""
        self._session: str | None = None
        self.seen = Seen()

    def __enter__(self) -> Self:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4.
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        with (self._profile / "stderr.txt").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", command, "bash", find(), *OPTIONS, f"--user-data-dir={self._profile}", "about:blank"],
                pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            targets = self.call("Target.getTargets")["targetInfos"]
            page = next(target["targetId"] for target in targets if target["type"] == "page")
            self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network", "Security", "Audits"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        os.close(self._out)  # Chromium ends when its pipe does
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its answer."""
        self._last += 1
        number = self._last
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        try:
            os.write(self._out, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise BrowserError(self._last_words()) from None
        until = time.monotonic() + SECONDS
        while True:
            answer = self._receive(until - time.monotonic())
            if answer is None:
                raise BrowserError(f"{method}: no answer in {SECONDS:g} s")
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, page: Path, width: int, *, phone: bool = False, media: str = "screen") -> Seen:
        """Load a page afresh, in a window of a width in CSS pixels, and wait until it is still."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", media=media)
        self.call("Page.navigate", url="about:blank")
        self._drain()
        self.seen = Seen()
        failed = self.call("Page.navigate", url=page.absolute().as_uri()).get("errorText")
        if failed:
            raise BrowserError(f"{page}: {failed}")
        until = time.monotonic() + SECONDS
        while self.evaluate("document.readyState") != "complete":
            if time.monotonic() > until:
                raise BrowserError(f"{page}: not loaded in {SECONDS:g} s")
        self._drain()
        return self.seen

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page. Raises BrowserError for an exception in it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def picture(self, target: Path) -> None:
        """Write the whole page as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        target.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        answer = self.call("Page.printToPDF", preferCSSPageSize=True)
        return base64.b64decode(answer["data"])

    def _drain(self) -> None:
        while self._receive(QUIET_S) is not None:
            pass

    def _receive(self, seconds: float) -> Mapping[str, Any] | None:
        """The next message, whose event is noted; None if there is none for so long."""
        until = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            more = os.read(self._in, 1 << 20)
            if not more:
                raise BrowserError(self._last_words())
            self._buffer += more
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, about: Mapping[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.seen.requests.append((about.get("type", ""), about["request"]["url"]))
        elif event == "Log.entryAdded":
            self.seen.logged.append((about["entry"]["level"], about["entry"]["text"]))
        elif event == "Runtime.consoleAPICalled":
            text = " ".join(str(argument.get("value", argument)) for argument in about["args"])
            self.seen.logged.append((about["type"], text))
        elif event == "Runtime.exceptionThrown":
            self.seen.logged.append(("error", about["exceptionDetails"]["text"]))
        elif event == "Audits.issueAdded":  # what the developer tools list as issues
            self.seen.logged.append(("issue", json.dumps(about["issue"])))

    def _last_words(self) -> str:
        text = (self._profile / "stderr.txt").read_text(errors="replace")
        return f"Chromium ended: {' '.join(text.split())[-500:]}"
