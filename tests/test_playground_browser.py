"""The playground's page in a real browser: Debian's Chromium (make test-browser)."""

import threading

import flask
import numpy as np
import pytest
import tensorflow as tf
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from deberta_tf.attention_terms import attention_terms
from deberta_tf.entity_metrics import entities_of
from tests.browser_page import narrow, preferring, serving, serving_app
from tests.playground_tasks import INPUTS
from tools.playground_answers import view_of
from tools.playground_server import make_app

pytestmark = pytest.mark.browser
pytest_plugins = ("tests.playground_fixtures", "tests.browser_fixtures")
TERMS = ("c2c", "c2p", "p2c", "sum", "probabilities")


def picture(page, canvas):
    return page.driver.execute_script("return arguments[0].toDataURL()", canvas)


def test_labels_have_the_scores_that_the_task_predicts(page, tasks, addresses):
    given, task = INPUTS["classifier"], tasks["classifier"]
    page.open(addresses["classifier"])
    assert page.one("h1").text == "classifier"
    page.one("#field-text").send_keys(given["text"])
    page.one("#field-text").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait_for_answer()
    (expected,) = tf.nn.softmax(task.predict([given["text"]], verbose=0)).numpy()
    order = np.argsort(-expected)
    assert [label for label, _ in page.scores()] == [task.labels[i] for i in order]
    found = [score for _, score in page.scores()]
    np.testing.assert_allclose(found, expected[order], atol=6e-4)


def test_an_example_is_filled_in_and_answered_by_a_click(page, addresses):
    page.open(addresses["classifier"])
    example = page.all(".example")[2]
    example.click()
    page.wait_for_answer()
    filled = [area.get_attribute("value") for area in page.all("textarea")]
    assert " \u2014 ".join(filled) == example.text
    assert sum(score for _, score in page.scores()) == pytest.approx(1.0, abs=2e-3)


def test_a_regression_is_a_number(page, tasks, addresses):
    given = INPUTS["regression"]
    page.open(addresses["regression"]).run(given)
    pair = [given["text"]], [given["text_pair"]]
    expected = float(tasks["regression"].predict(pair, verbose=0)[0, 0])
    shown = float(page.one(".number").text.replace("\u2212", "-"))
    assert shown == pytest.approx(expected, abs=6e-4)


def test_entities_are_highlighted_with_their_types(page, tasks, addresses):
    words = INPUTS["tagger"]["text"].split()
    page.open(addresses["tagger"]).run(INPUTS["tagger"])
    (tags,) = tasks["tagger"].tag([words])
    entities = entities_of(tags)
    assert entities
    marks = page.all(".marked mark")
    assert [mark.get_attribute("data-type") for mark in marks] == [
        entity.type for entity in entities
    ]
    for mark, entity in zip(marks, entities, strict=True):
        inside = " ".join(words[entity.start : entity.end])
        assert mark.text.split() == [*inside.split(), entity.type]
    assert len(page.all(".entities tbody tr")) == len(entities)


def test_an_answer_is_marked_in_its_context(page, tasks, addresses):
    given = INPUTS["answers"]
    page.open(addresses["answers"]).run(given)
    (expected,) = tasks["answers"].answer([given["question"]], [given["context"]])
    assert page.one(".marked mark").text == expected.text.strip()
    assert page.one(".marked").get_attribute("textContent") == given["context"]
    assert page.one(".found").text == expected.text.strip()
    assert "overlapping windows" in page.one("#notices").text
    assert len(page.all("#row option")) > 1


def test_no_answer_is_said(page, tasks, addresses, monkeypatch):
    monkeypatch.setattr(tasks["answers"], "no_answer_threshold", -1e9)
    page.open(addresses["answers"]).run(INPUTS["answers"])
    assert page.one(".found").text == "No answer"
    assert page.all(".marked mark") == []


def test_masks_have_their_candidates(page, tasks, addresses):
    page.open(addresses["masked_lm"]).run(INPUTS["masked_lm"])
    expected = tasks["masked_lm"].fill_mask(INPUTS["masked_lm"]["text"], top_k=10)
    assert len(page.all(".mask")) == len(expected) == 2
    for number, candidates in enumerate(expected, start=1):
        found = page.scores(f".mask:nth-child({number}) li")
        # Of equal scores either may be first.
        assert {label for label, _ in found} == {label for label, _ in candidates}
        np.testing.assert_allclose(
            [score for _, score in found], [score for _, score in candidates], atol=6e-4
        )
    assert "enhanced mask decoder" in page.one("#attention-notice").text


@pytest.mark.parametrize("name", ["choices", "entities", "spans", "replaced"])
def test_the_other_tasks_have_their_scores(page, addresses, name):
    page.open(addresses[name]).run(INPUTS[name])
    if name == "replaced":
        assert len(page.all(".chip")) == len(page.texts(".chip small")) > 5
    else:
        assert len(page.scores()) == {"choices": 3, "entities": 3, "spans": 2}[name]


def test_what_is_cut_off_is_said(page, addresses):
    page.open(addresses["classifier"]).run({"text": "nobody sold peas. " * 20})
    assert "the end is left out" in page.one("#notices").text
    page.run(INPUTS["classifier"])
    assert not page.one("#notices").is_displayed()


def test_the_attention_follows_layer_head_and_term(page, tasks, addresses):
    page.open(addresses["classifier"]).run(INPUTS["classifier"])
    canvas = page.wait_for_map("0/0/0/probabilities")
    view = view_of(tasks["classifier"])
    rows, _ = view.rows(**INPUTS["classifier"])
    length = int(np.sum(rows["padding_mask"][0]))
    inputs = {name: rows[name][:, :length] for name in view.task.backbone.input}
    every = attention_terms(view.task.backbone, inputs)
    pictures = set()
    for layer, head in ((0, 0), (1, 0), (1, 1)):
        if layer and not head:
            page.one("#layer").send_keys(Keys.ARROW_RIGHT)
        if head:
            page.one("#head").send_keys(Keys.ARROW_RIGHT)
        for term in TERMS:
            page.one(f"#terms input[value={term}] + span").click()
            page.wait_for_map(f"0/{layer}/{head}/{term}")
            pictures.add(picture(page, canvas))
        canvas.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        query, key = layer + head + 1, 2 * (layer + head + 1)
        expected = {
            name: float(one[0, head, query, key]) for name, one in every[layer].items()
        }
        expected["sum"] = sum(expected[name] for name in ("c2c", "c2p", "p2c"))
        found = page.numbers()
        assert found.keys() == expected.keys()
        for name, number in found.items():
            assert number == pytest.approx(expected[name], abs=6e-5), name
    assert len(pictures) == 3 * len(TERMS)


def test_the_pointer_reads_the_numbers_of_a_cell_out(page, addresses):
    page.open(addresses["classifier"]).run(INPUTS["classifier"])
    canvas = page.wait_for_map("0/0/0/probabilities")
    before = page.numbers(), page.one("#readout-pair").text
    ActionChains(page.driver).move_to_element(canvas).perform()
    page.until(lambda: page.one("#readout-pair").text != before[1])
    assert page.numbers() != before[0]


def test_another_choice_has_its_own_attention(page, addresses):
    page.open(addresses["choices"]).run(INPUTS["choices"])
    page.wait_for_map("0/0/0/probabilities")
    assert page.texts("#row option")[1] == "choice 2: a grey cat"
    page.all("#row option")[1].click()
    page.wait_for_map("1/0/0/probabilities")


def test_what_is_typed_is_text_and_never_html(page, addresses):
    html = "<img src=nothing onerror=alert(1)>"
    page.open(addresses["choices"]).run({"text": html, "choices": [html, "<b>b</b>"]})
    assert {label for label, _ in page.scores()} == {html, "<b>b</b>"}
    assert {*page.texts(".bars .label")} == {html, "<b>b</b>"}
    assert page.all("#result img, #result b, #row img") == []


def test_a_mistake_is_said_beside_the_form(page, addresses):
    page.open(addresses["masked_lm"]).run({"text": "nothing to fill"})
    error = page.one("#error")
    page.until(error.is_displayed)
    assert error.text == "The text holds no [MASK], so there is nothing to fill."
    # The browser tells of the answer's status, and of nothing else.
    (entry,) = page.driver.get_log("browser")
    assert "status of 400" in entry["message"]
    page.run(INPUTS["masked_lm"])
    assert not error.is_displayed()


def test_a_server_that_is_gone_is_said(page, tasks):
    with serving(tasks["classifier"], "classifier") as address:
        page.open(address)
    page.run(INPUTS["classifier"])
    assert page.one("#error").text == "The server does not answer. Is it still running?"
    (entry,) = page.driver.get_log("browser")
    assert "ERR_CONNECTION_REFUSED" in entry["message"]


# Aborts as soon as the head of the answer has come.
ABORT = """
    const done = arguments[0];
    const controller = new AbortController();
    const fetched = window.fetch;
    window.fetch = async (...given) => {
      const response = await fetched(...given);
      setTimeout(() => controller.abort());
      return response;
    };
    const { request } = await import("./dom.js");
    request("api/halves", {}, controller.signal).then(
      (answer) => done(answer), (error) => done(error.name)
    );
"""


def test_an_abort_while_an_answer_comes_in_gives_no_answer(page, tasks):
    app = make_app(view_of(tasks["classifier"]), "classifier")
    go_on = threading.Event()

    @app.post("/api/halves")
    def halves():
        def parts():
            yield '{"kind": '
            go_on.wait()
            yield '"number"}'

        return flask.Response(parts(), mimetype="application/json")

    with serving_app(app) as address:
        page.open(address)
        try:
            assert page.driver.execute_async_script(ABORT) == "AbortError"
        finally:
            go_on.set()


def test_an_answer_that_is_no_json_is_said(page, tasks):
    app = make_app(view_of(tasks["classifier"]), "classifier")
    app.view_functions["api_answer"] = lambda: "{"
    with serving_app(app) as address:
        page.open(address).run(INPUTS["classifier"])
        assert page.one("#error").text == "The server answered 200, and no JSON."


# Answers have come, but are read when `arrive` is called.
HOLD = """
    const fetched = window.fetch;
    window.fetch = async (...given) => {
      const response = await fetched(...given);
      const answer = await response.json();
      const held = new Promise((resolve) => {
        window.arrive = () => resolve(answer);
      });
      response.json = () => held;
      return response;
    };
"""


def test_attention_that_comes_too_late_is_not_shown(page, addresses):
    page.open(addresses["classifier"]).run(INPUTS["classifier"])
    canvas = page.wait_for_map("0/0/0/probabilities")
    page.driver.execute_script(HOLD)
    page.one("#layer").send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: page.driver.execute_script("return Boolean(window.arrive)"))
    page.one("#layer").send_keys(Keys.ARROW_LEFT)
    assert page.one("#layer-number").text == "1 of 2"
    page.driver.execute_script("window.arrive()")
    assert canvas.get_attribute("data-shown") == "0/0/0/probabilities"


@pytest.mark.parametrize("name", INPUTS)
def test_a_narrow_window_needs_no_scrolling_sideways(page, addresses, name):
    with narrow(page.driver):
        page.open(addresses[name]).run(INPUTS[name])
        page.wait_for_map("0/0/0/probabilities")
        script = "return document.documentElement.scrollWidth"
        assert page.driver.execute_script(script) <= 400


def test_the_page_is_dark_where_one_wants_it_dark(page, addresses):
    page.open(addresses["classifier"]).run(INPUTS["classifier"])
    canvas = page.wait_for_map("0/0/0/probabilities")
    pictures, backgrounds = set(), {}
    for scheme in ("light", "dark"):
        with preferring(page.driver, scheme):
            # The map is drawn anew, in the other colours.
            page.until(lambda: picture(page, canvas) not in pictures)
            pictures.add(picture(page, canvas))
            colour = page.one("body").value_of_css_property("background-color")
        backgrounds[scheme] = sum(map(int, colour.split("(")[1].split(",")[:3]))
    assert backgrounds["dark"] < 150 < 600 < backgrounds["light"]
