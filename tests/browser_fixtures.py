"""One browser, and the pages of the playground's tasks, for all tests of them."""

import contextlib

import pytest

from tests.browser_page import Page, open_browser, serving


@pytest.fixture(scope="session")
def addresses(tasks):
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(serving(task, name))
            for name, task in tasks.items()
        }


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    """A page that must leave no word in the browser's console."""
    yield Page(browser)
    assert browser.get_log("browser") == []
