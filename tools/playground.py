"""Shows a fine-tuned or pretrained preset on a local web page, to try it by hand.

python -m tools.playground PRESET_DIR
"""

import argparse
import logging
import os
import socket

from werkzeug.serving import make_server

from deberta_tf import files
from tools.export_saved_model import task_class
from tools.playground_answers import view_of
from tools.playground_server import HOST, make_app


def main(argv=None):
    arguments = parse(argv)
    folder = arguments.folder
    if not os.path.isdir(folder):
        raise files.UsageError(f"{folder!r} is not a folder")
    kind = task_class(folder)
    # A port in use is told before a model is loaded.
    with _listen(arguments.port) as listener:
        view = view_of(kind.from_preset(folder))
        # Many a folder is called "preset".
        name = os.path.join(*os.path.realpath(folder).split(os.sep)[-2:])
        app = make_app(view, name)
        # Of its own it prints a line for each request.
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = make_server(HOST, 0, app, threaded=True, fd=listener.fileno())
        port = listener.getsockname()[1]
        print(f"{view.title}: http://{HOST}:{port}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def _listen(port):
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise files.UsageError(f"--port {port}: {error.strerror}") from None


def parse(argv):
    parser = files.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", metavar="PRESET_DIR", help="folder of a task, ours or Hugging Face's"
    )
    parser.add_argument(
        "--port", type=_port, default=0, help="on 127.0.0.1; 0: any that is free"
    )
    return parser.parse_args(argv)


def _port(text):
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 0 to 65535. Received: {text!r}"
        )
    return int(text)


if __name__ == "__main__":
    files.run_command(main)
