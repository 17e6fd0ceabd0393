#!/usr/bin/env python
"""Take screenshots of the page of `moco-transfer report --format html` in headless Chromium.

    python tools/screenshot_page.py report.html docs/figures/bccd_page

writes docs/figures/bccd_page_{375,1440}_{light,dark}.png. Needs Chromium and chromedriver (Debian:
chromium, chromium-driver) and selenium (pip install -e '.[browser]').
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from pathlib import Path


def open_browser():
    """Return a headless Chromium; ends the program with one sentence where there is none."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        sys.exit("Chromium or chromedriver is missing (Debian: chromium, chromium-driver).")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        sys.exit("selenium is not installed: pip install -e '.[browser]'.")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(driver))


def take(browser, page: Path, file: Path, *, max_height: int, width: int, scheme: str) -> None:
    """Write one image of the page from its top."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})
    browser.get(page.resolve().as_uri())
    height = browser.execute_script("return document.documentElement.scrollHeight")
    size["height"] = min(height, max_height)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    file.parent.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(file))


def main() -> int:
    """Take four images; returns the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("page", type=Path, help="the HTML file")
    parser.add_argument("stem", help="start of the images' names")
    more = "cut a longer page off there (default %(default)s)"
    parser.add_argument("--max-height", type=int, default=4000, metavar="PX", help=more)
    args = parser.parse_args()
    if not args.page.is_file():
        sys.exit(f"{args.page} does not exist; `moco-transfer report --format html` makes it.")
    browser = open_browser()
    try:
        for width, scheme in itertools.product((375, 1440), ("light", "dark")):
            file = Path(f"{args.stem}_{width}_{scheme}.png")
            how = {"max_height": args.max_height, "width": width, "scheme": scheme}
            take(browser, args.page, file, **how)
            print(file)
    finally:
        browser.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
