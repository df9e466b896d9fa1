"""Pictures of every view, in both themes, at two widths, of one run and of several.

They are written to the folder `KERAS_JOINTLOSS_PICTURES` if it is set, to look at them. The test
looks for what no picture may have: text over text, and content beside the page.
"""

import base64
import os
import pathlib

import pytest

from keras_jointloss.tensorboard.figures import KINDS
from tests.dashboard_logs import write_runs
from tests.dashboard_page import Page, require_browser, tensorboard, wait_for, wait_for_runs

pytestmark = [pytest.mark.backend("torch"), pytest.mark.slow]
THEMES, WIDTHS = ("light", "dark"), (1440, 800)
STATES = {
    "one": {"run": ["base"]},
    "runs": {},
    "overlay": {"compare": "overlay"},
}

#: Returns the pairs of texts of the figure that are drawn over each other.
OVERLAPS = """
const found = [];
const texts = [...document.querySelectorAll("#chart svg text, .chip")].filter(
  (x) => x.textContent.trim() && !x.closest(".modebar, .hoverlayer, .heatmaplayer"));
const boxes = texts.map((x) => x.getBoundingClientRect());
for (let i = 0; i < boxes.length; i++) {
  for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i], boxes[j]];
    const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (width > 2 && height > 4) found.push([texts[j].textContent, texts[i].textContent]);
  }
}
return found;
"""


class Picture(Page):
    """A browser with the tab alone, without TensorBoard around it."""

    def load(self, address):
        self.driver.get("about:blank")
        self.driver.get(address.replace("/#", "/data/plugin_entry.html?name=joint_loss#"))
        wait_for(lambda: self.run("return document.querySelector('main')?.dataset.drawn"))

    def resize(self, width):
        """Changes the width of the page."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
        )

    def dark(self, is_dark):
        """Chooses the theme, as TensorBoard does."""
        if self.run("return document.body.classList.contains('dark-mode')") != is_dark:
            self.act("document.body.classList.toggle('dark-mode')")

    def save(self, path):
        """Writes a picture of the whole page."""
        size = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        path.write_bytes(base64.b64decode(picture["data"]))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    require_browser()
    logs = tmp_path_factory.mktemp("logs")
    write_runs(logs)
    browser = Picture()
    try:
        with tensorboard(logs) as address:
            wait_for_runs(address, 3)
            yield browser, address
    finally:
        browser.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_pictures(page, tmp_path, theme, width):
    browser, address = page
    folder = pathlib.Path(os.environ.get("KERAS_JOINTLOSS_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    browser.resize(width)
    browser.address = None
    faults = {}
    for kind in KINDS:
        for name, state in STATES.items():
            if name == "overlay" and (width == min(WIDTHS) or kind in ("cosines", "pareto")):
                continue
            browser.open(address, kind=kind, **state)
            browser.dark(theme == "dark")
            picture = f"{kind}-{name}-{theme}-{width}"
            browser.save(folder / f"{picture}.png")
            overlaps = browser.run(OVERLAPS)
            is_wide = browser.run("return document.documentElement.scrollWidth > innerWidth")
            if overlaps or is_wide:
                faults[picture] = overlaps, is_wide
    assert not faults
    assert browser.errors() == []
