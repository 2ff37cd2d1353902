"""A headless Chromium driven over its DevTools pipe, with the standard library alone."""

import base64
import contextlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--enable-unsafe-swiftshader --force-color-profile=srgb"
).split()


def find():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


needs_chromium = pytest.mark.skipif(
    find() is None, reason="no chromium on this machine (Debian: apt-get install chromium)"
)


class Page:
    """One tab; `errors` collects console errors and uncaught exceptions."""

    def __init__(self, process, to_browser, from_browser):
        self.process, self._out, self._in = process, to_browser, from_browser
        self._buffer, self._id, self.errors, self._session = b"", 0, [], None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _read(self, deadline):
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise EOFError("Chromium went away")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def _call(self, method, timeout=60, **params):
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + timeout
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._event(answer)

    def _event(self, event):
        kind, params = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("text", "exception"))
        elif kind == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(" ".join(str(a.get("value", a)) for a in params["args"]))
        elif kind == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def open(self, url, width=1200, height=900):
        self.errors.clear()
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._call("Page.navigate", url=str(url))
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression):
        result = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("text"))
        return result["result"].get("value")

    def wait(self, expression, timeout=40):
        deadline = time.monotonic() + timeout
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {expression}; errors: {self.errors}")
            time.sleep(0.1)

    def screenshot(self, path=None, full=False):
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        raw = base64.b64decode(data["data"])
        if path:
            path.write_bytes(raw)
        return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))

    def box(self, selector):
        """x, y, width, height of an element in the viewport."""
        return self.evaluate(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
            "return [r.x, r.y, r.width, r.height].map(Math.round); })()"
        )

    def drag(self, start, end, steps=8):
        def mouse(kind, at, **more):
            self._call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **more)

        mouse("mousePressed", start, button="left", buttons=1, clickCount=1)
        for i in range(1, steps + 1):
            at = [a + (b - a) * i / steps for a, b in zip(start, end, strict=True)]
            mouse("mouseMoved", at, button="left", buttons=1)
        mouse("mouseReleased", end, button="left", clickCount=1)


@contextlib.contextmanager
def browser():
    """A page of a fresh browser, gone with all its processes at the end."""
    profile = tempfile.mkdtemp(prefix="chromium")
    in_child, to_browser = os.pipe()
    from_browser, out_child = os.pipe()
    command = [find(), *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    # DevTools speaks on descriptors 3 and 4; the shell puts our pipes there.
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{in_child} 4>&{out_child}', "bash", *command],
        pass_fds=(in_child, out_child),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(in_child)
    os.close(out_child)
    try:
        yield Page(process, to_browser, from_browser)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
        shutil.rmtree(profile, ignore_errors=True)
