import contextlib
import pathlib
import re
import threading

import pytest
import requests
import tensorflow as tf

from deberta_tf import DebertaMaskedLM, DebertaTextClassifier
from deberta_tf.files import UsageError, run_command
from tests.playground_tasks import INPUTS, ask
from tests.small_models import make_backbone
from tools import playground
from tools.export_saved_model import task_class
from tools.playground_answers import view_of
from tools.playground_fields import MAX_CHARACTERS
from tools.playground_server import make_app

pytest_plugins = "tests.playground_fixtures"
PAGE = pathlib.Path(playground.__file__).parent / "playground_page"
LONG = "nobody remembers the theory of knots. " * 18


def refuse(client, path="answer", **body):
    response = client.post(f"/api/{path}", json=body)
    assert response.status_code == 400
    assert [*response.json] == ["error"]
    return response.json["error"]


@pytest.mark.parametrize(
    ("name", "inputs", "error"),
    [
        ("classifier", None, "inputs must be an object. Received: None"),
        ("classifier", [], "inputs must be an object. Received: []"),
        ("classifier", {}, "'Text' is missing."),
        ("classifier", {"text": ""}, "'Text' is missing."),
        ("classifier", {"text": " \n"}, "'Text' is blank."),
        ("classifier", {"text": 7}, "'Text' must be a string."),
        ("classifier", {"text": ["a"]}, "'Text' must be a string."),
        ("classifier", {"text": "a", "words": "b"}, "inputs have no 'words' here."),
        ("classifier", {"text": "a", "text_pair": 0}, "'Second text' must be a string"),
        ("classifier", {"text": "x" * (MAX_CHARACTERS + 1)}, "has 20,001 characters"),
        ("classifier", {"text": "a\ud800"}, "'Text' holds half of a character."),
        ("choices", {"text": "a", "choices": "b"}, "must be a list of strings."),
        ("choices", {"text": "a", "choices": ["b"]}, "2 to 32 lines. Received: 1."),
        ("choices", {"text": "a", "choices": ["b", ""]}, "line 2, is blank."),
        ("choices", {"text": "a", "choices": ["b", 1]}, "line 2, must be a string."),
        ("masked_lm", {"text": "no mask"}, "The text holds no [MASK]"),
        ("masked_lm", {"text": "[MASK]" + LONG}, "the model reads at most 96."),
        (
            "entities",
            {"passage": "Oslo", "query": "a", "entities": ["Oslo"]},
            "The query holds no @placeholder.",
        ),
        (
            "entities",
            {"passage": "Oslo", "query": "@placeholder", "entities": ["Rome"]},
            "The passage does not hold 'Rome'.",
        ),
        ("spans", {"text": "a [cat]"}, "must hold 2 [marked] spans. Received: 1."),
        ("spans", {"text": "a", "text_pair": "[b]"}, "Each text must hold 1 [marked]"),
    ],
)
def test_inputs_that_are_none_are_refused_in_a_sentence(clients, name, inputs, error):
    assert error in refuse(clients[name], inputs=inputs)
    assert error in refuse(clients[name], "attention", inputs=inputs)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"layer": 2}, "layer must be a whole number from 0 to 1. Received: 2."),
        ({"head": -1}, "head must be a whole number from 0 to 1. Received: -1."),
        ({"row": 1}, "row must be a whole number from 0 to 0. Received: 1."),
        ({"layer": "1"}, "Received: '1'."),
        ({"layer": True}, "Received: True."),
        ({"term": "c2c"}, "The request has no 'term'."),
    ],
)
def test_a_head_that_is_none_is_refused(clients, wrong, error):
    inputs = INPUTS["classifier"]
    assert error in refuse(clients["classifier"], "attention", inputs=inputs, **wrong)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("{", "application/json"),
        ("[]", "application/json"),
        # What a form of a foreign page could send without asking.
        ('{"inputs": {"text": "a"}}', "text/plain"),
    ],
)
def test_a_request_that_is_no_json_object_is_refused(clients, data, kind):
    response = clients["classifier"].post("/api/answer", data=data, content_type=kind)
    assert response.status_code == 400
    assert response.json == {"error": "The request must be a JSON object."}


def test_a_request_of_megabytes_is_refused(clients):
    inputs = {"text": "a" * (1 << 20)}
    response = clients["classifier"].post("/api/answer", json={"inputs": inputs})
    assert response.status_code == 413
    assert response.json == {"error": "The request is larger than 1,048,576 bytes."}


@pytest.mark.parametrize("path", ["/nothing", "/../playground.py", "/api/answer"])
def test_other_addresses_are_errors_in_json(clients, path):
    response = clients["classifier"].get(path)
    assert response.status_code in (404, 405)
    assert response.json["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:8000", 400),
        ("192.168.0.7", 400),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/model", "/page.js"])
def test_only_loopback_hosts_are_answered(clients, path, host, status):
    response = clients["classifier"].get(path, headers={"Host": host})
    assert response.status_code == status
    response.close()


def test_the_page_asks_nobody_else():
    for path in PAGE.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^ *//.*$", "", text, flags=re.MULTILINE), path
        assert "innerHTML" not in text, path


def test_the_page_has_all_that_it_names(clients):
    with clients["classifier"].get("/") as response:
        html = response.text
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    for name in re.findall(r'(?:src|href)="([^"]+)"', html):
        with clients["classifier"].get(f"/{name}") as response:
            assert response.status_code == 200, name
    named = set(re.findall(r'byId\("([^"]+)"\)', "".join(scripts())))
    assert named - set(re.findall(r'id="([^"]+)"', html)) == set()


def scripts():
    return [path.read_text("utf-8") for path in PAGE.glob("*.js")]


def test_scores_that_are_not_finite_are_an_error(tasks):
    preprocessor = tasks["classifier"].preprocessor
    task = DebertaTextClassifier(make_backbone(), 2, preprocessor=preprocessor)
    for weight in task.weights:
        weight.assign(tf.fill(weight.shape, float("nan")))
    client = make_app(view_of(task), "broken").test_client()
    for path, what in (("answer", "The model's scores"), ("attention", "The scores")):
        response = client.post(f"/api/{path}", json={"inputs": {"text": "a"}})
        assert response.status_code == 500
        assert response.json["error"].startswith(what)


def test_a_failure_is_told_without_its_trace(tasks, caplog):
    view = view_of(tasks["classifier"])
    view.answer = lambda text: 1 // 0
    client = make_app(view, "failing").test_client()
    response = client.post("/api/answer", json={"inputs": {"text": "a"}})
    assert response.status_code == 500
    assert response.json["error"].startswith("The model failed at this input")
    assert "ZeroDivisionError" in caplog.text


def test_one_prediction_runs_at_a_time(tasks):
    meeting, met = threading.Barrier(2), []

    def answer(text):
        # It breaks where nobody else is let in.
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(timeout=0.3)
            met.append(text)
        return {"kind": "number", "score": 0.0}

    view = view_of(tasks["classifier"])
    view.answer, view.notices = answer, lambda text: []
    app = make_app(view, "slow")
    threads = [
        threading.Thread(
            target=lambda: ask(app.test_client(), inputs={"text": "a"}), daemon=True
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == []


@pytest.fixture
def preset(tasks, tmp_path):
    folder = str(tmp_path / "mine" / "preset")
    tasks["masked_lm"].save_to_preset(folder)
    return folder


def test_the_command_serves_a_folder_on_a_free_port(preset, monkeypatch, capsys):
    made, make_server = [], playground.make_server

    def make(*args, **kwargs):
        made.append(make_server(*args, **kwargs))
        ready.set()
        return made[-1]

    ready = threading.Event()
    monkeypatch.setattr(playground, "make_server", make)
    thread = threading.Thread(target=playground.main, args=([preset],), daemon=True)
    thread.start()
    ready.wait()
    (server,) = made
    url = f"http://127.0.0.1:{server.port}"
    model = requests.get(f"{url}/api/model").json()
    assert (model["name"], model["task"]) == ("mine/preset", "DebertaMaskedLM")
    server.shutdown()
    thread.join()
    assert f"Masked language model: {url}/ " in capsys.readouterr().out


def test_a_port_that_is_taken_is_one_line(preset, capsys):
    with playground._listen(0) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match="2"):
            run_command(playground.main, [preset, "--port", port])
    assert capsys.readouterr().err.startswith(f"error: --port {port}: Address")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["nowhere"], "'nowhere' is not a folder"),
        (["nowhere", "--port", "70000"], "from 0 to 65535. Received: '70000'"),
        ([], "PRESET_DIR"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(command, error, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_command(playground.main, command)
    assert error in capsys.readouterr().err


def test_a_task_without_a_tokenizer_is_refused():
    with pytest.raises(UsageError, match="DebertaTextClassifier has no tokenizer"):
        view_of(DebertaTextClassifier(make_backbone(), 2))


def test_a_folder_of_hugging_face_is_shown(tasks, tmp_path):
    task, folder = tasks["masked_lm"], str(tmp_path / "theirs")
    task.save_to_huggingface(folder, tokenizer=task.preprocessor.tokenizer)
    assert task_class(folder) is DebertaMaskedLM
    loaded = task_class(folder).from_preset(folder)
    client = make_app(view_of(loaded), "theirs").test_client()
    found = ask(client, inputs=INPUTS["masked_lm"])
    expected = task.fill_mask(INPUTS["masked_lm"]["text"], top_k=1)
    assert found["masks"][0][0]["label"] == expected[0][0][0]
