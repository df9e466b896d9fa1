"""The tab "Joint loss" in a real browser, on a real TensorBoard, over logs of a real training."""

import csv
import importlib.metadata
import json

import numpy as np
import pytest

from tests.dashboard_page import Page, get, require_browser, tensorboard, wait_for, wait_for_runs
from tests.training_logs import HOSTILE, STEPS, TERMS, train, write, write_scalars

pytestmark = pytest.mark.backend("torch")


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """Returns the folder of two runs and their histories."""
    root = tmp_path_factory.mktemp("logs")
    first = train(root / "first").history
    second = train(root / "second", epochs=2, seed=1, update_freq="batch").history
    return root, {"first": first, "second": second}


@pytest.fixture(scope="module")
def browser():
    require_browser()
    assert "joint_loss" in importlib.metadata.entry_points(group="tensorboard_plugins").names
    page = Page()
    yield page
    page.close()


@pytest.fixture(scope="module")
def address(histories, browser):
    with tensorboard(histories[0]) as found:
        wait_for_runs(found, 2)
        yield found


@pytest.fixture
def page(browser, address):
    """Returns the browser, and checks that nothing has failed in it."""
    browser.errors()
    yield browser
    assert browser.errors() == []


def test_numbers_on_the_page_equal_history(page, address, histories):
    history = histories[1]["first"]
    page.open(address, run=["first"])
    page.driver.switch_to.default_content()
    selector = "[role=tab][aria-selected=true], .mdc-tab--active"
    tab = page.driver.find_element("css selector", selector)
    assert tab.text.lower() == "joint loss"
    page.enter()
    for split, prefix in (("train", ""), ("validation", "val_")):
        total = page.trace(split=split, term=None)
        assert total["y"] == pytest.approx(history[f"{prefix}loss"], rel=1e-6)
        assert total["x"] == [STEPS, 2 * STEPS, 3 * STEPS]
        for term in TERMS:
            weighted = np.multiply(history[f"{prefix}{term}_share"], history[f"{prefix}loss"])
            found = page.trace(split=split, term=term)
            assert found["y"] == pytest.approx(weighted, rel=1e-5)
    page.click("[data-kind=losses]")
    for term in TERMS:
        found = page.trace(split="validation", term=term)
        assert found["y"] == pytest.approx(history[f"val_{term}_loss"], rel=1e-5)
    page.click("[data-kind=weights]")
    assert page.trace(term="pair", split="train")["y"] == pytest.approx(history["pair_weight"])
    page.click("[data-kind=readings]")
    drawn = page.trace(term="pair", split="train")["y"]
    assert drawn == pytest.approx(history["pair_temperature"])
    page.click("[data-kind=gradients]")
    assert page.trace(tag="gradients/conflict")["y"] == pytest.approx(history["gradients_conflict"])
    page.click("[data-kind=cosines]")
    over_time, latest = page.traces()
    assert over_time["z"][0] == pytest.approx(history["gradients_label~mood_cosine"])
    assert latest["x"] == ["label", "mood"]
    page.click("[data-kind=retrieval]")
    recalls = [x["y"] for x in page.traces() if x["meta"].get("term") == "pair R@5"]
    assert recalls == [history["pair_a_to_b_recall_at_5"], history["pair_b_to_a_recall_at_5"]]
    page.click("[data-kind=pareto]")
    assert "needs two of them" in page.text("#status")
    page.open(address, kind="pareto")
    point = page.trace(run="first")
    expected = [history["val_label_loss"][-1], history["val_mood_loss"][-1]]
    assert [point["x"][0], point["y"][0]] == pytest.approx(expected, rel=1e-5)
    page.open(address, kind="pareto", run=["first"])
    rows = page.run(
        "return [...document.querySelectorAll('#table tbody tr')].map("
        "(row) => [...row.children].map((cell) => cell.innerText))"
    )
    assert [row[:2] for row in rows] == [["first", term] for term in TERMS]
    for row in rows:
        loss = history[f"{row[1]}_loss"]
        assert float(row[3]) == pytest.approx(loss[-1], abs=1e-4)
        change = float(row[4].removesuffix("%").replace("\N{MINUS SIGN}", "-")) / 100
        assert change == pytest.approx(loss[-1] / loss[-2] - 1, abs=1e-3)


def test_every_control_changes_what_it_says(page, address, histories):
    page.open(address)
    assert {x["meta"].get("run") for x in page.traces()} == {"first", "second"}
    page.click("input[data-name=second]")
    assert {x["meta"].get("run") for x in page.traces()} == {"first"}
    page.click("input[data-name=mood]")
    assert {x["meta"].get("term") for x in page.traces()} == {"label", "pair", None}
    page.click("#terms legend button:first-of-type")
    assert {x["meta"].get("term") for x in page.traces()} == {*TERMS, None}
    page.choose("share", "true")
    shares = [
        sum(x["y"][0] for x in page.traces() if x["stack"] and x["meta"]["split"] == split)
        for split in ("train", "validation")
    ]
    assert shares == pytest.approx([1, 1], abs=1e-5)
    page.choose("split", "validation")
    assert {x["meta"].get("split") for x in page.traces()} == {"validation"}
    page.choose("x", "epoch")
    assert page.trace(term=None)["x"] == [1, 2, 3]
    page.choose("x", "time")
    assert page.layout("xaxis.title.text") == "minutes"
    page.click("[data-kind=losses]")
    assert page.layout("yaxis.type") == "log"
    page.choose("scale", "linear")
    assert page.layout("yaxis.type") == "linear"
    raw = page.trace(term="mood")["y"]
    page.choose("smoothing", "0.5")
    assert page.trace(term="mood")["y"][1] == pytest.approx((0.5 * raw[0] + raw[1]) / 1.5)
    page.click("[data-kind=pareto]")
    page.click("#runs legend button:first-of-type")
    page.choose("a", "pair")
    page.choose("b", "validation/retrieval/pair/recall_at_1")
    recall = histories[1]["first"]["pair_recall_at_1"][-1]
    assert page.trace(run="first")["y"] == pytest.approx([recall])
    page.click("#runs legend button:last-of-type")
    assert "Choose a run" in page.text("#status")


def test_two_runs_are_compared(page, address):
    page.open(address, kind="losses")
    assert {x["axis"] for x in page.traces() if x["meta"].get("run") == "first"}.isdisjoint(
        {x["axis"] for x in page.traces() if x["meta"].get("run") == "second"}
    )
    page.choose("compare", "overlay")
    runs = ("first", "second")
    first, second = (page.trace(run=run, term="mood", split="train") for run in runs)
    assert first["axis"] == second["axis"]
    assert first["color"] == second["color"]
    assert first["dash"] != second["dash"]
    assert len(second["y"]) == 2 * STEPS


def test_runs_have_a_range_of_y_each_or_the_same(page, address):
    page.open(address, kind="weights")
    assert page.layout("yaxis2.matches") is None
    page.choose("ranges", "shared")
    assert page.layout("yaxis2.matches") == "y"
    page.choose("compare", "overlay")
    assert page.run("return document.getElementById('ranges').closest('label').hidden")


def test_state_is_in_the_address(page, address):
    page.open(address)
    page.click("[data-kind=losses]")
    page.choose("x", "epoch")
    page.click("input[data-name=mood]")
    link = page.run("return window.parent.location.href")
    page.load(link)
    assert page.run("return document.getElementById('x').value") == "epoch"
    assert {x["meta"].get("term") for x in page.traces()} == {"label", "pair", None}
    assert page.trace(term="label", split="train", run="first")["x"] == [1, 2, 3]


def test_dark_mode_follows_tensorboard(page, address):
    page.open(address)
    assert page.layout("paper_bgcolor") == "#ffffff"
    page.act("window.parent.document.body.classList.add('dark-mode')")
    assert page.layout("paper_bgcolor") == "#303030"
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(48, 48, 48)"
    page.act("window.parent.document.body.classList.remove('dark-mode')")
    assert page.layout("paper_bgcolor") == "#ffffff"


def test_tabs_are_reached_by_keyboard(page, address):
    from selenium.webdriver import Keys

    page.open(address)
    page.driver.find_element("css selector", "[data-kind=terms]").send_keys(Keys.ARROW_RIGHT)
    wait_for(lambda: any(x["meta"].get("term") and not x["stack"] for x in page.traces()))
    focus = page.run("return document.activeElement.dataset.kind")
    assert focus == "losses"
    unnamed = page.run(
        "return [...document.querySelectorAll('select, input, button, a')].filter("
        "(x) => !(x.labels?.length || x.innerText || x.ariaLabel || x.title ||"
        " x.closest('.modebar'))).length"
    )
    assert unnamed == 0


def test_csv_has_what_is_drawn(page, address, histories):
    page.open(address, kind="losses", run=["first"], term=["label"])
    link = page.run("return document.getElementById('csv').href")
    status, content = get(link)
    assert status == 200
    rows = list(csv.DictReader(content.decode().splitlines()))
    key = ("validation", "joint_loss/label/raw")
    values = [float(x["value"]) for x in rows if (x["split"], x["tag"]) == key]
    assert values == pytest.approx(histories[1]["first"]["val_label_loss"], rel=1e-6)
    assert [x["epoch"] for x in rows[:3]] == ["1.0", "2.0", "3.0"]


def test_page_is_readable_on_a_narrow_screen(page, address):
    page.driver.set_window_size(700, 900)
    try:
        page.open(address, kind="gradients")
        widths = page.run("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1]
        assert page.layout("xaxis.domain")[1] == pytest.approx(page.layout("xaxis3.domain")[1])
    finally:
        page.driver.set_window_size(1200, 1000)


def test_empty_folder_then_hostile_and_damaged_runs(browser, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    with tensorboard(logs, "--reload_interval", "1", "--load_fast", "false") as address:
        listing = f"{address}/data/plugins_listing"
        assert not json.loads(get(listing)[1])["joint_loss"]["enabled"]
        browser.errors()
        browser.driver.switch_to.default_content()
        browser.driver.get(f"{address}/data/plugin_entry.html?name=joint_loss")
        wait_for(lambda: "JointLossCallback(log_dir=...)" in browser.text("#status"), Exception)
        write(logs / "<img src=x onerror=alert(1)>", HOSTILE, steps=4, end=100)
        write(logs / "cut", ["one"], steps=40)
        (path,) = (logs / "cut" / "train").iterdir()
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        wait_for_runs(address, 2)
        browser.open(address)
        names = {x["meta"].get("term") for x in browser.traces()}
        assert names == {*HOSTILE, "one", None}
        assert browser.text("#runs label span") == "<img src=x onerror=alert(1)>"
        assert browser.run("return document.querySelectorAll('img, main script').length") == 0
        assert "damaged or cut off" in browser.text("#notes")
        values = browser.trace(term="a/b/c", split="train")["y"]
        assert values == [0.5 * (step + 1) for step in (1, 2, 3, 4)]
        browser.run("document.title = 'before'")
        write(logs / "new", ["two"], steps=4)
        still = {"joint_loss/still/raw": 2.5, "joint_loss/still/weight": 1.0}
        write_scalars(logs / "new", *((still, step) for step in (1, 2, 3, 4)))
        wait_for_runs(address, 3)
        # The page follows TensorBoard's own reload.
        browser.driver.switch_to.default_content()
        browser.run("document.querySelector('.reload-button, [mattooltip*=eload]').click()")
        browser.enter()
        wait_for(lambda: "two" in {x["meta"].get("term") for x in browser.traces()})
        assert browser.run("return document.title") == "before"
        wait_for(lambda: browser.run("return document.querySelectorAll('.mark').length"))
        dimmed = browser.run("return [...document.querySelectorAll('.empty')].map((x) => x.title)")
        assert len(dimmed) == 4  # Readings, gradients, cosines and retrieval.
        assert all(x.endswith("The chosen runs have no data for it.") for x in dimmed)
        assert "new, step 1: The loss of the term 'still' has not" in browser.text("#events")
        (mark,) = browser.run(
            "return [...document.querySelectorAll('.mark')].map("
            "(x) => [x.parentElement.title, x.title, x.innerText])"
        )
        assert mark[::2] == ["still", "!"]
        assert mark[1].startswith("The loss of the term 'still' has not changed since epoch 1")
        assert browser.errors() == []


@pytest.mark.parametrize("path", ["../plugin.py", "..%2fplugin.py", "page/index.js", "/etc/passwd"])
def test_no_route_reads_a_file_that_is_named(address, path):
    status, content = get(f"{address}/data/plugin/joint_loss/{path}")
    assert status == 404 or b"<!doctype html>" in content.lower()
    assert b"import" not in content[:200]
