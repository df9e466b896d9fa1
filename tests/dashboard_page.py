"""Starts TensorBoard and a browser, and reads the tab "Joint loss" as a user does."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

# The real server, which here does not look for TensorFlow: importing it takes seconds.
SERVER = """
import sys, types
sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")
from tensorboard.main import run_main
run_main()
"""
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 60  # Until a test gives up waiting.


@contextlib.contextmanager
def tensorboard(log_dir, *flags):
    """Yields the address of a TensorBoard over a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", SERVER, "--logdir", str(log_dir)]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: get(f"{address}/data/plugins_listing")[0] == 200, OSError)
        yield address
    finally:
        process.terminate()
        process.wait()


def get(address):
    """Returns the status and the content that an address answers."""
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def wait_for_runs(address, count):
    """Waits until the tab is active and has this many runs."""
    plugins, runs = f"{address}/data/plugins_listing", f"{address}/data/plugin/joint_loss/runs"
    wait_for(lambda: json.loads(get(plugins)[1])["joint_loss"]["enabled"])
    wait_for(lambda: len(json.loads(get(runs)[1])["runs"]) == count)


#: Hands Selenium the seconds until the page has drawn what a script changes.
WATCH = """
const done = arguments[arguments.length - 1], start = performance.now();
new MutationObserver((_, observer) => {
  observer.disconnect();
  done((performance.now() - start) / 1000);
}).observe(document.querySelector("main"), {attributeFilter: ["data-drawn"]});
"""


def wait_for(condition, *errors, seconds=SECONDS):
    """Returns what is true in the end, or fails."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(*errors):
            found = condition()
            if found:
                return found
        time.sleep(0.05)
    raise AssertionError("The page has not become what it should be.")


def require_browser():
    """Skips the test where no browser is installed, or fails where there has to be one."""
    if CHROMIUM and DRIVER:
        return
    message = "needs the browser: apt-get install chromium chromium-driver"
    if os.environ.get("KERAS_JOINTLOSS_NEEDS_BROWSER"):
        pytest.fail(message)
    pytest.skip(message)


class Page:
    """A browser with the tab.

    Args:
        width: The width of its window in pixels.
    """

    def __init__(self, width=1200):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        size = f"window-size={width},1000"
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", size):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.address = None
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.driver.set_script_timeout(SECONDS)

    def open(self, address, **state):
        """Opens the tab with a state, and waits until it is drawn."""
        parts = ["joint_loss"]
        for name, value in state.items():
            text = value if isinstance(value, str) else json.dumps(value)
            parts.append(f"p.joint_loss.{name}={urllib.parse.quote(text, safe='')}")
        hash_ = f"#{'&'.join(parts)}"
        if self.address != address:
            self.address = address
            self.load(f"{address}/{hash_}")
        elif self.run("return window.parent.location.hash") != hash_:
            # As a link does that a user follows: TensorBoard itself takes seconds to load.
            self.act("window.parent.location.hash = arguments[0]", hash_)

    def load(self, address):
        """Loads TensorBoard anew, and waits until the tab is drawn."""
        self.driver.switch_to.default_content()
        self.driver.get("about:blank")
        self.driver.get(address)
        self.enter()

    def enter(self):
        """Goes into the frame of the tab and waits until it is drawn."""
        from selenium.common.exceptions import WebDriverException

        def frame():
            self.driver.switch_to.default_content()
            frames = self.driver.find_elements("css selector", "iframe")
            if not frames:
                return False
            self.driver.switch_to.frame(frames[0])
            return self.run("return Boolean(document.querySelector('main')?.dataset.drawn)")

        wait_for(frame, WebDriverException)

    def run(self, script, *arguments):
        """Returns what a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def act(self, script, *arguments):
        """Runs a script that changes the view, and returns the seconds until it is drawn."""
        return self.driver.execute_async_script(WATCH + script, *arguments)

    def choose(self, control, value):
        """Chooses an option of a control, and returns the seconds until the view is drawn."""
        return self.act(
            "const x = document.getElementById(arguments[0]); x.value = arguments[1];"
            "x.dispatchEvent(new Event('input')); x.dispatchEvent(new Event('change'))",
            control,
            value,
        )

    def click(self, selector):
        """Clicks on an element, and returns the seconds until the view is drawn."""
        return self.act("document.querySelector(arguments[0]).click()", selector)

    def traces(self):
        """Returns the traces that are drawn, with their data."""
        return self.run(
            "return (document.getElementById('chart')._fullData ?? []).map((x) => ({name: x.name,"
            "meta: x.meta ?? {}, dash: x.line?.dash, color: x.line?.color, stack: x.stackgroup,"
            "axis: x.xaxis, x: Array.from(x.x ?? []), y: Array.from(x.y ?? []),"
            "z: Array.from(x.z ?? [], (row) => Array.from(row))}))"
        )

    def trace(self, **meta):
        """Returns the only trace with these facts."""
        (found,) = [x for x in self.traces() if all(x["meta"].get(k) == v for k, v in meta.items())]
        return found

    def text(self, selector):
        """Returns the text of an element."""
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def layout(self, name):
        """Returns a part of the layout that is drawn."""
        return self.run(
            "return arguments[0].split('.').reduce((x, key) => x[key],"
            "document.getElementById('chart')._fullLayout)",
            name,
        )

    def errors(self):
        """Returns the errors on the console since the last call."""
        found = [x["message"] for x in self.driver.get_log("browser") if x["level"] == "SEVERE"]
        # A frame that is opened by itself has no icon.
        return [x for x in found if "/favicon.ico" not in x]

    def close(self):
        """Ends the browser."""
        self.driver.quit()
