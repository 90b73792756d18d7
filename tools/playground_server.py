"""The playground's web server: a page, and what a task says, as JSON."""

import dataclasses
import os
import threading

import flask
from werkzeug.exceptions import HTTPException

from tools.playground_attention import attention_of
from tools.playground_fields import MAX_CHARACTERS, RequestError, read_inputs

HOST = "127.0.0.1"
_PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "playground_page")
_MAX_BYTES = 1 << 20
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action "
    "'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(view, name):
    """The application that shows a task.

    GET / is the page, GET /api/model what it shows. POST /api/answer takes `inputs`,
    an object of the task's fields; POST /api/attention also `row`, `layer` and `head`,
    see `attention_of`. A mistake is a 4xx with {"error": a sentence}.

    Args:
        view: `View`.
        name: str, what the model is called on the page.

    Returns:
        `flask.Flask`.
    """
    app = flask.Flask(__name__, static_folder=_PAGE, static_url_path="")
    # By another name of this machine a foreign page could read the answers.
    app.config.update(TRUSTED_HOSTS=[HOST, "localhost"], MAX_CONTENT_LENGTH=_MAX_BYTES)
    app.json.sort_keys = False
    lock = threading.Lock()
    model = describe(view, name)

    @app.get("/")
    def page():
        return app.send_static_file("index.html")

    @app.get("/api/model")
    def api_model():
        return model

    @app.post("/api/answer")
    def api_answer():
        body = _read_body("inputs")
        given = read_inputs(view.fields, body.get("inputs"))
        with lock:
            return {**view.answer(**given), "notices": view.notices(**given)}

    @app.post("/api/attention")
    def api_attention():
        body = _read_body("inputs", "row", "layer", "head")
        given = read_inputs(view.fields, body.pop("inputs", None))
        with lock:
            return attention_of(view, given, **body)

    _add_errors(app)
    return app


def describe(view, name):
    """What the page shows of a model: dict for JSON."""
    backbone = view.task.backbone
    return {
        "name": name,
        "title": view.title,
        "task": type(view.task).__name__,
        "num_parameters": view.task.count_params(),
        "num_layers": backbone.num_layers,
        "num_heads": backbone.num_heads,
        "terms": ["c2c", *backbone.position_terms],
        "labels": getattr(view.task, "labels", None),
        "max_tokens": view.limit,
        "attention_note": view.attention_note,
        "max_characters": MAX_CHARACTERS,
        "fields": [dataclasses.asdict(field) for field in view.fields],
        "examples": list(view.examples),
    }


def _read_body(*names):
    body = flask.request.get_json(silent=True)
    if not isinstance(body, dict):
        raise RequestError("The request must be a JSON object.")
    unknown = body.keys() - set(names)
    if unknown:
        raise RequestError(f"The request has no {min(unknown)!r:.40}.")
    return body


def _add_errors(app):
    @app.errorhandler(RequestError)
    def refused(error):
        return {"error": str(error)}, 400

    @app.errorhandler(FloatingPointError)
    def broken(error):
        return {"error": str(error)}, 500

    @app.errorhandler(HTTPException)
    def failed(error):
        sentence = error.description
        if error.code == 413:
            sentence = f"The request is larger than {_MAX_BYTES:,} bytes."
        if error.code == 500:
            sentence = "The model failed at this input; the terminal tells how."
        return {"error": sentence}, error.code

    @app.after_request
    def guarded(response):
        response.headers.update(_HEADERS)
        return response
