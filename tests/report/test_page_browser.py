"""The page in a real browser: tables, sorting by mouse and keyboard, theme, width, console.

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium (`pip install -e
'.[browser]'`). Seen red under: numbers sorted as text; a cell without a value sorted first;
aria-sort left at the old column; a table that widens the page; an error in the script; the toggle
without effect; a page that reloads while it is paused, or closed what the reader had opened.
"""

from __future__ import annotations

import json
import shutil
import time

import pytest

from moco_transfer.report import build_tables, read_runs
from moco_transfer.report.html.page import render_page
from moco_transfer.report.pretraining import find_pretraining

pytestmark = pytest.mark.slow
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
TABLES = "[id^=table] table"  # those of single tasks, without the summary over both


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (pip install -e '.[browser]')"
    )
    if BROWSER is None or DRIVER is None:
        pytest.skip("Chromium or chromedriver is not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    from selenium.webdriver.chrome.service import Service

    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(three_rows, make_run, browser):
    """Open a page of two tables, warnings, pre-training and a long name; return the driver."""
    make_run(
        "partial",
        "moco_" + "long" * 12,
        0,
        weights={"path": "w.pkl"},
        flags={"allow_partial": True},
        bbox={"AP": 9.5, "AP50": 30.0},
    )
    masks = {
        "bbox": {"AP": 38.0, "AP50": 58.0, "AP75": 41.0, "APs": 20.0},
        "segm": {"AP": 35.0, "AP50": 55.0, "AP75": 37.0},
    }
    make_run(
        "coco",
        "moco",
        metrics=masks,
        task="coco_R_50_FPN_1x",
        dataset={"train": [], "test": ["coco_2017_val"]},
    )
    pretrain = three_rows / "pretrain"
    pretrain.mkdir()
    same = {"chance": 8.3, "cos_positive": 0.5, "cos_negative": 0.1}
    lines = [
        {"iteration": i, "loss": 9.0 - i, "contrast_acc1": 10.0 * i, **same} for i in range(1, 5)
    ]
    (three_rows / "moco_0/metrics.json").write_text(
        '{"iteration": 50, "total_loss": 1.0, "loss_rpn_cls": 0.1}\n'
    )
    (pretrain / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records, problems = read_runs([three_rows])
    runs, _ = find_pretraining([three_rows], records)
    file = three_rows / "report.html"
    file.write_text(
        render_page(build_tables(records), problems, pretraining=runs, folders=[three_rows]),
        encoding="utf-8",
    )
    _emulate(browser, width=1440, scheme="light")
    browser.get_log("browser")
    browser.get(file.as_uri())
    browser.execute_script("try { localStorage.clear() } catch {}")
    browser.refresh()
    return browser


def _emulate(browser, *, width, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def _column(page, table, column):
    script = (
        "const table = document.querySelectorAll('[id^=table] table')[arguments[0]];"
        " return [...table.tBodies[0].rows].map(r => r.cells[arguments[1]].textContent.trim())"
    )
    return page.execute_script(script, table, column)


def _sorts(page, table):
    script = (
        "const table = document.querySelectorAll('[id^=table] table')[arguments[0]];"
        " return [...table.querySelectorAll('th[aria-sort]')].map(h => h.ariaSort)"
    )
    return page.execute_script(script, table)


def test_page__sorts_by_mouse(page):
    # Tables in the page: boxes and masks of COCO, its runs, boxes of VOC, its runs.
    assert len(page.find_elements("css selector", TABLES)) == 5
    voc, ap, gap = 3, 1, 4
    long = "moco_" + "long" * 12 + "†"
    assert _column(page, voc, 0) == ["random", "supervised", "moco", long]
    heads = page.find_elements("css selector", TABLES)[voc].find_elements(
        "css selector", "th button"
    )
    heads[ap].click()
    assert _column(page, voc, ap) == ["9.5", "34.0 ± 1.0", "53.7 ± 0.8", "56.2 ± 1.3"]
    assert _sorts(page, voc)[:3] == ["none", "ascending", "none"]
    heads[ap].click()
    assert _column(page, voc, ap)[0] == "56.2 ± 1.3"
    heads[gap].click()  # the supervised row has no difference: last, up and down
    assert _column(page, voc, 0) == [long, "random", "moco", "supervised"]
    assert [index for index, value in enumerate(_sorts(page, voc)) if value != "none"] == [gap]
    heads[gap].click()
    assert _column(page, voc, 0) == ["moco", "random", long, "supervised"]
    heads[gap].click()
    assert _column(page, voc, 0) == ["random", "supervised", "moco", long]


def test_page__sorts_by_keyboard_and_says_so(page):
    from selenium.webdriver.common.keys import Keys

    head = page.find_elements("css selector", TABLES)[3].find_elements("css selector", "th button")[
        1
    ]
    page.execute_script("arguments[0].focus()", head)
    assert (
        page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        != "none"
    )
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert _column(page, 3, 1)[0] == "9.5"
    page.switch_to.active_element.send_keys(Keys.SPACE)
    assert _column(page, 3, 1)[0] == "56.2 ± 1.3"
    assert (
        page.find_element("id", "said").get_attribute("textContent") == "Sorted by AP, descending"
    )


def test_page__a_seed_leads_to_its_run(page):
    link = page.find_elements("css selector", TABLES)[4].find_element("css selector", "tbody a")
    target = link.get_attribute("href").split("#")[1]
    assert not page.find_element("css selector", f"#{target} dl").is_displayed()
    link.click()
    assert page.find_element("css selector", f"#{target} dl").is_displayed()


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page__fits_the_screen_without_a_console_error(page, width, scheme):
    _emulate(page, width=width, scheme=scheme)
    page.refresh()
    for details in page.find_elements("css selector", "details"):
        page.execute_script("arguments[0].open = true", details)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    plots = page.execute_script(
        "return [...document.querySelectorAll('.plot svg')].map(s =>"
        " s.getBoundingClientRect().width)"
    )
    assert len(plots) >= 6
    assert all(250 < plot <= width for plot in plots)
    assert page.get_log("browser") == []


def test_page__follows_the_system_and_the_toggle(page):
    def paper():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    light = paper()
    _emulate(page, width=1440, scheme="dark")
    dark = paper()
    assert light != dark
    toggle = page.find_element("id", "theme")
    toggle.click()
    assert (toggle.text, paper()) == ("Theme: light", light)
    toggle.click()
    assert (toggle.text, paper()) == ("Theme: dark", dark)
    # Text and lines of the plots follow: what would stay black on black cannot be read.
    ink = page.execute_script("return getComputedStyle(document.querySelector('.plot text')).fill")
    assert ink == page.execute_script("return getComputedStyle(document.body).color")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page__letters_stand_out_from_the_paper(page, scheme):
    _emulate(page, width=1440, scheme=scheme)
    script = """
      const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const luminance = (c) => {
        const p = c.match(/[\\d.]+/g).slice(0, 3).map((v) => linear(v / 255));
        return 0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2]; };
      const ratio = (a, b) => {
        const [x, y] = [luminance(a), luminance(b)].sort((m, n) => n - m);
        return (x + 0.05) / (y + 0.05); };
      const paper = getComputedStyle(document.body).backgroundColor;
      const names = ["body", ".legend", "figcaption", ".better", ".worse", "a", "caption", "dt"];
      return names.map((s) => {
        const e = document.querySelector(s);
        return [s, e ? ratio(getComputedStyle(e).color, paper) : null]; });
    """
    ratios = dict(page.execute_script(script))
    assert all(ratio is not None and ratio >= 4.5 for ratio in ratios.values()), (
        ratios
    )  # WCAG 2.1, level AA


def test_page__watched_reloads_itself_and_keeps_what_is_open(three_rows, browser):
    tables, file = build_tables(read_runs([three_rows])[0]), three_rows / "watched.html"

    def write(title, reload_sec=1):
        file.write_text(render_page(tables, title=title, reload_sec=reload_sec), encoding="utf-8")

    def wait_for(title):
        until = time.monotonic() + 30
        while browser.title != title:
            assert time.monotonic() < until, browser.title
            time.sleep(0.1)

    def runs():
        return browser.find_element("css selector", "details.runs").get_property("open")

    write("first")
    browser.get(file.as_uri())
    assert not runs()
    browser.find_element("css selector", "details.runs > summary").click()
    write("second")
    wait_for("second")
    assert runs()
    browser.find_element("id", "reload").click()
    assert browser.find_element("id", "reload").text == "Reload: off"
    write("third")
    time.sleep(2.5)
    assert browser.title == "second"
    browser.refresh()
    assert (browser.title, browser.find_element("id", "reload").text) == ("third", "Reload: off")
    browser.find_element("id", "reload").click()
    write("last", reload_sec=0)
    wait_for("last")
    assert not browser.find_elements("id", "reload") and browser.get_log("browser") == []
