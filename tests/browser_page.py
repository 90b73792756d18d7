"""The playground's page as one uses it, in Debian's Chromium."""

import contextlib
import os
import threading

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from werkzeug.serving import make_server

from tools.playground_answers import view_of
from tools.playground_server import HOST, make_app

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1200,1000",
)
WAIT_S = 30


def serving(task, name):
    """Serves a task's page within it; gives the address."""
    return serving_app(make_app(view_of(task), name))


@contextlib.contextmanager
def serving_app(app):
    server = make_server(HOST, 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.port}/"
    finally:
        server.shutdown()
        thread.join()


def open_browser(profile):
    """A driver of Chromium, which keeps what it must in the folder `profile`."""
    if not (os.path.exists(CHROMIUM) and os.path.exists(DRIVER)):
        pytest.fail(
            f"{CHROMIUM} and {DRIVER} are missing: apt-get install chromium "
            "chromium-driver",
            pytrace=False,
        )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


class Page:
    """The page as one uses it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address):
        self.driver.get(address)
        self.until(lambda: self.all(".example"))
        return self

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def until(self, condition):
        return WebDriverWait(self.driver, WAIT_S, 0.05).until(lambda _: condition())

    def fill(self, inputs):
        for name, value in inputs.items():
            text = value if isinstance(value, str) else "\n".join(value)
            # Keys of ChromeDriver are of the basic plane only.
            script = "arguments[0].value = arguments[1]"
            self.driver.execute_script(script, self.one(f"#field-{name}"), text)

    def run(self, inputs):
        self.fill(inputs)
        self.one("#run").click()
        self.wait_for_answer()

    def wait_for_answer(self):
        self.until(lambda: self.one("#answer").get_attribute("aria-busy") == "false")

    def scores(self, selector=".bars li"):
        return [
            (row.get_attribute("data-label"), float(value.text))
            for row in self.all(selector)
            for value in row.find_elements(By.CSS_SELECTOR, ".value")
        ]

    def wait_for_map(self, shown):
        canvas = self.one("#heatmap")
        self.until(lambda: canvas.get_attribute("data-shown") == shown)
        return canvas

    def numbers(self):
        """{term: number} of the chosen pair of tokens."""
        return {
            row.get_attribute("data-term"): float(
                row.find_element(By.TAG_NAME, "td").text.replace("\u2212", "-")
            )
            for row in self.all("#readout tr")
        }


@contextlib.contextmanager
def preferring(driver, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@contextlib.contextmanager
def narrow(driver):
    """A telephone's window, 400 wide; a picture of it has twice as many pixels."""
    size = {"width": 400, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
