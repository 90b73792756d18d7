"""Pictures of the playground's page, to be looked at (make test-browser).

They are written to the folder PLAYGROUND_PICTURES, or else to one of pytest's; where
they are is printed (`-rP` shows it).
"""

import base64
import contextlib
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.browser_page import narrow, preferring
from tests.playground_tasks import INPUTS

pytestmark = pytest.mark.browser
pytest_plugins = ("tests.playground_fixtures", "tests.browser_fixtures")
LOOKS = {
    "light": lambda driver: preferring(driver, "light"),
    "dark": lambda driver: preferring(driver, "dark"),
    "narrow": narrow,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = os.environ.get("PLAYGROUND_PICTURES")
    if not folder:
        return tmp_path_factory.mktemp("pictures")
    os.makedirs(folder, exist_ok=True)
    return pathlib.Path(folder)


def take(driver, path):
    """A picture of all of the page: uint8 array (height, width, 3)."""
    whole = {"format": "png", "captureBeyondViewport": True}
    found = driver.execute_cdp_cmd("Page.captureScreenshot", whole)
    png = base64.b64decode(found["data"])
    path.write_bytes(png)
    print(path)
    return tf.io.decode_png(png, channels=3).numpy()


def colours(pixels):
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


@pytest.mark.parametrize(
    ("name", "look"),
    [*((name, "light") for name in INPUTS), ("answers", "dark"), ("answers", "narrow")],
)
def test_a_picture_shows_the_answer_and_the_map(page, addresses, folder, name, look):
    scale = 2 if look == "narrow" else 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(LOOKS[look](page.driver))
        page.open(addresses[name]).run(INPUTS[name])
        page.wait_for_map("0/0/0/probabilities")
        pixels = take(page.driver, folder / f"{name}-{look}.png")
        places = [page.one(selector).rect for selector in ("#result", "#heatmap")]
    assert pixels.shape[1] == (800 if look == "narrow" else 1200)
    assert (pixels[0, 0].mean() < 60) == (look == "dark")
    for place, least in zip(places, (20, 50), strict=True):
        top, left = int(scale * place["y"]), int(scale * place["x"])
        bottom = top + int(scale * place["height"])
        right = left + int(scale * place["width"])
        assert colours(pixels[top:bottom, left:right]) > least
