"""Debian's Chromium without a window, driven by selenium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
SECONDS = 30


def why_no_browser() -> str | None:
    """Why no page can be looked at here; None where one can."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if not missing:
        return None
    return f"no {' and '.join(missing)} here; apt-get install chromium chromium-driver brings both"


class Browser:
    """One tab that shows pages from files."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, address: str = "") -> None:
        """Show a page from the start, and wait until its first view is complete."""
        self.driver.get("about:blank")
        self.driver.get(page.as_uri() + (f"#{address}" if address else ""))
        self.wait("document.documentElement.dataset.ready")

    def go(self, address: str) -> None:
        """Go to a view of the page that is shown, and wait until it is complete."""
        before = int(self.run("return document.documentElement.dataset.ready"))
        self.run("location.hash = arguments[0]", address)
        self.wait(f"Number(document.documentElement.dataset.ready) > {before}")

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true; returns its value."""
        return WebDriverWait(self.driver, SECONDS, poll_frequency=0.02).until(
            lambda driver: driver.execute_script(f"return {condition}"), condition
        )

    def text(self, selector: str = "body") -> str:
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def complaints(self) -> list[str]:
        """What the console said since the last call: errors, warnings, refused loads."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What the page fetched beside itself."""
        return list(self.run("return performance.getEntriesByType('resource').map((entry) => entry.name)"))

    def size(self, width: int, height: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def prefers(self, scheme: str) -> None:
        """Ask for a ``dark`` or ``light`` page."""
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def command(self, name: str, **parameters: object) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a profile in an empty folder; it is gone at the end of the block."""
    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (*QUIET, f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
