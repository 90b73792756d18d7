"""The folder that TF Serving, Docker and Kubernetes serve an exported model by."""

import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import re
import string
import textwrap

from deberta_tf import files
from deberta_tf.windows import WINDOW_ROWS
from tools import warm_up

FOLDER = "deployment"
CONFIGS = ("models.config", "batching_parameters.txt", "monitoring.config")
MODEL_CARD = "MODEL_CARD.md"
FILES = (*CONFIGS, "compose.yaml", "kubernetes.yaml", MODEL_CARD)

# Has TF-Text 2.20; the releases from 2.12 to 2.19 have 2.12.1, which has the operations
# of SentencePiece as well (their tensorflow_serving/workspace.bzl).
IMAGE = "tensorflow/serving:2.20.0"
# Of the image's entry point (tools/docker/Dockerfile).
GRPC_PORT, REST_PORT = 8500, 8501
METRICS_PATH = "/monitoring/prometheus/metrics"
CONFIG_POLL_S = 60
REST_TIMEOUT_S = 30
FORGET_S = 15
# So that pods which are new get a share of clients that keep their connections.
CONNECTION_AGE_S = 300

TOKENS_PER_BATCH = 4096
MAX_BATCH_ROWS = 32
MAX_REQUEST_ROWS = 256
MIN_THREADS = 64
# Where calls are not batched. REST also answers those that ask for the server's status.
MIN_GRPC_THREADS, MIN_REST_THREADS = 4, 2

_TEMPLATES = pathlib.Path(__file__).parent / "deployment_templates"
# Of Services in Kubernetes (RFC 1035); also a folder's and a URL's part.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """What the files are made from.

    Attributes:
        name: str, see `check_name`.
        version: int.
        sequence_length: int. Tokens of the longest row.
        batches_requests: bool, see `can_batch_requests`.
        cpus: int. Cores of a server.
        weights_bytes: int. What a loaded version holds.
        row_bytes: int, see `activation_bytes`.
        choices: int. Rows of an example that is one of choices, 1 of others.
        has_windows: bool. Whether an example may be any number of rows, which are run
            `WINDOW_ROWS` at a time.
        num_parameters: int.
        warm_up_tokens: int. Tokens of all warm-up records.
    """

    name: str
    version: int
    sequence_length: int
    batches_requests: bool
    cpus: int
    weights_bytes: int
    row_bytes: int
    choices: int
    has_windows: bool
    num_parameters: int
    warm_up_tokens: int

    @property
    def batch_rows(self):
        return batch_rows(self.sequence_length)

    @property
    def calls(self):
        """What is run at a time: batches, or calls of an example each."""
        if self.batches_requests:
            return self.cpus
        # One of gRPC's turns away what finds no thread (grpc, thread_manager.cc).
        return self.grpc_threads - 1 + self.rest_threads

    @property
    def call_bytes(self):
        """What one of `calls` takes."""
        if self.has_windows:
            return WINDOW_ROWS * self.row_bytes
        examples = self.batch_rows if self.batches_requests else 1
        return examples * self.choices * self.row_bytes

    @property
    def grpc_threads(self):
        return max(MIN_GRPC_THREADS, self._threads)

    @property
    def rest_threads(self):
        return max(MIN_REST_THREADS, self._threads)

    @property
    def _threads(self):
        """Of gRPC, and as many of REST, before the least that each needs.

        A call that waits for its batch holds a thread, so these are twice what is run
        at a time (batching_session.h). Without batching each is run at once: both pools
        together are the rows that batches would have.
        """
        rows = self.cpus * self.batch_rows
        if self.batches_requests:
            return max(MIN_THREADS, 2 * rows)
        return self.cpus // 2 if self.has_windows else rows // 2

    @property
    def memory_mib(self):
        """Of a server: a multiple of 256."""
        size = 2 * self.weights_bytes + self.calls * self.call_bytes + 2**30
        return 256 * math.ceil(size / 2**28)

    @property
    def startup_s(self):
        """Seconds that loading and warm-up may take: a multiple of 60.

        Two operations a parameter and token, 2e10 of them a second and core, which is
        low on purpose.
        """
        operations = 2 * self.num_parameters * self.warm_up_tokens
        return 60 * math.ceil(2 + operations / (2e10 * self.cpus) / 60)


def check_name(name):
    """Refuses names that Kubernetes or a URL does not take.

    Raises:
        UsageError: it says what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise files.UsageError(
            f"--name {name!r} is no name to serve by: it must be a letter, then up to "
            "62 letters, digits and '-', in lower case, the last no '-'"
        )


def batch_rows(sequence_length):
    """Rows that are run together at most: a power of two."""
    rows = max(1, min(MAX_BATCH_ROWS, TOKENS_PER_BATCH // sequence_length))
    return 2 ** (rows.bit_length() - 1)


def can_batch_requests(signatures):
    """Whether requests to the signatures of raw inputs always fit one another.

    Requests that differ in an axis other than the first fail, all that are in a batch
    (batching_session.cc): rows of words, choices or entities are of any width.

    Args:
        signatures: {name: SignatureDef}.
    """
    return all(
        dimension.size >= 0
        for name, signature in signatures.items()
        if name != "token_ids"
        for one in signature.inputs.values()
        for dimension in one.tensor_shape.dim[1:]
    )


def activation_bytes(backbone, length):
    """int: about what a row of so many tokens takes while it is run, in float32.

    A little above what was measured at 12 heads and width 768 on 2 CPU cores: 149 MB at
    512 tokens, 9 MB at 128.
    """
    scores = 10 * backbone.num_heads * length * length
    states = length * (2 * backbone.intermediate_dim + 8 * backbone.hidden_dim)
    return 4 * (scores + states)


def make_deployment(task, signatures, name, version, cpus, weights_bytes):
    """A `Deployment` of a task that was exported with these signatures."""
    length = task.preprocessor.sequence_length
    lengths = warm_up.served_lengths(length)
    plan = warm_up.plan(lengths, batch_rows(length), len(signatures))
    tokens = len(signatures) * sum(rows * tokens for tokens, rows in plan)
    inputs = signatures["serving_default"].inputs
    choices = warm_up.NUM_CHOICES if "choices" in inputs else 1
    return Deployment(
        name=name,
        version=version,
        sequence_length=length,
        batches_requests=can_batch_requests(signatures),
        cpus=cpus,
        weights_bytes=weights_bytes,
        row_bytes=activation_bytes(task.backbone, length),
        choices=choices,
        has_windows=hasattr(task.preprocessor, "windows"),
        num_parameters=task.count_params(),
        warm_up_tokens=choices * tokens,
    )


def check_replaceable(served):
    """Refuses to replace a deployment folder that holds files of others.

    Args:
        served: str, the folder of the versions.
    """
    files.check_replaceable(os.path.join(served, FOLDER), FILES.__contains__)


@contextlib.contextmanager
def replacement(served):
    """Yields an unfinished folder that takes the place of the deployment on success.

    Args:
        served: str, the folder of the versions.
    """
    path = os.path.join(served, FOLDER)
    files.recover_directory(path)
    with files.atomic_directory(path) as folder:
        yield folder


def write(folder, texts):
    """Writes files, {name: text} of all in `FILES`, into a folder."""
    for name, text in texts.items():
        files.atomic_write(os.path.join(folder, name), text)


def render(deployment):
    """{name of a file: its text} of all but the model card."""
    values = _values(deployment)
    configs = {name: fill(name, **values) for name in CONFIGS}
    embedded = {
        name.replace(".", "_"): textwrap.indent(text.rstrip(), " " * 4)
        for name, text in configs.items()
    }
    digest = hashlib.sha256("".join(configs.values()).encode()).hexdigest()
    # Inside the folder of the versions, which the compose file mounts.
    compose_folder = f"/models/{deployment.name}/{FOLDER}"
    config_folder = "/config"
    age = f"--grpc_channel_arguments=grpc.max_connection_age_ms={CONNECTION_AGE_S}000"
    return {
        **configs,
        "compose.yaml": fill(
            "compose.yaml",
            **values,
            flags=_as_list(server_flags(deployment, compose_folder), 6),
            health_check=textwrap.indent(health_check(deployment.name), " " * 10),
        ),
        "kubernetes.yaml": fill(
            "kubernetes.yaml",
            **values,
            **embedded,
            checksum=digest,
            config_folder=config_folder,
            flags=_as_list([*server_flags(deployment, config_folder), age], 12),
        ),
    }


def fill(template, **values):
    """The text of a template, by its file's name, with its places filled."""
    template = string.Template((_TEMPLATES / template).read_text("utf-8"))
    return template.substitute(values)


def server_flags(deployment, config_folder):
    """Flags of `tensorflow_model_server` (model_servers/main.cc): list of str."""
    models, batching, monitoring = (f"{config_folder}/{name}" for name in CONFIGS)
    cpus = deployment.cpus
    flags = [
        f"--model_config_file={models}",
        f"--model_config_file_poll_wait_seconds={CONFIG_POLL_S}",
        f"--monitoring_config_file={monitoring}",
        f"--rest_api_timeout_in_ms={REST_TIMEOUT_S}000",
        # Else as many as the machine has, whatever part of it the server may use.
        f"--tensorflow_intra_op_parallelism={cpus}",
        f"--tensorflow_inter_op_parallelism={cpus}",
        f"--rest_api_num_threads={deployment.rest_threads}",
        f"--grpc_max_threads={deployment.grpc_threads}",
    ]
    if deployment.batches_requests:
        flags += batching_flags(batching)
    return flags


def batching_flags(path):
    """TF Serving refuses the second without the first (model_servers/server.cc)."""
    return ["--enable_batching=true", f"--batching_parameters_file={path}"]


def health_check(name):
    """Commands of bash that succeed where a version of the model is available."""
    # With the quotes: an error's text may have the word.
    return (
        f"exec 3<>/dev/tcp/127.0.0.1/{REST_PORT}\n"
        rf"printf 'GET {status_path(name)} HTTP/1.0\r\n\r\n' >&3" + "\n"
        "grep --quiet '\"AVAILABLE\"' <&3"
    )


def status_path(name):
    """Path of the REST API that tells of a model's versions (api_rest.md)."""
    return f"/v1/models/{name}"


def _values(deployment):
    return {
        **dataclasses.asdict(deployment),
        "batch_rows": deployment.batch_rows,
        "config_poll_s": CONFIG_POLL_S,
        "grpc_port": GRPC_PORT,
        "image": IMAGE,
        "max_enqueued_batches": 2 * math.ceil(MAX_REQUEST_ROWS / deployment.batch_rows),
        "max_request_rows": MAX_REQUEST_ROWS,
        "memory_mib": deployment.memory_mib,
        "memory_reason_10": _as_comment(_memory_reason(deployment), 10),
        "memory_reason_12": _as_comment(_memory_reason(deployment), 12),
        "metrics_path": METRICS_PATH,
        "rest_port": REST_PORT,
        "rows_of_examples": _rows_of_examples(deployment),
        "startup_failures": deployment.startup_s // 5,
        "startup_s": deployment.startup_s,
        "status_path": status_path(deployment.name),
        "termination_s": FORGET_S + REST_TIMEOUT_S,
        "tokens_per_batch": f"{deployment.batch_rows * deployment.sequence_length:,}",
        "use": _use_of_batching(deployment),
    }


def _memory_reason(deployment):
    weights, call = deployment.weights_bytes / 1e6, deployment.call_bytes / 1e6
    calls = "batches" if deployment.batches_requests else "calls of an example each,"
    return (
        f"Two versions of {weights:,.0f} MB while one takes the other's place, "
        f"{deployment.calls} {calls} of about {call:,.0f} MB, 1 GiB for the server."
    )


def _rows_of_examples(deployment):
    """Of the rows of a request, which TF Serving counts, those of the model."""
    if deployment.has_windows:
        return "\n" + _as_comment(
            "A long text in a row of a request is several rows of the model, which "
            f"runs {WINDOW_ROWS} at a time at most: the memory limit has so many.",
            0,
        )
    if deployment.choices > 1:
        return "\n" + _as_comment(
            "Each choice in a row of a request is a row of the model: the memory limit "
            f"has {deployment.choices} choices.",
            0,
        )
    return ""


def _use_of_batching(deployment):
    if deployment.batches_requests:
        return "#\n# Requests to token_ids must then have rows of one width, see below."
    flags = "\n".join(f"#   {flag}" for flag in batching_flags("<this file>"))
    # Windows are run in chunks, however many they are.
    limit = (
        "" if deployment.has_windows else " (the memory limit has one for each call)"
    )
    reason = _as_comment(
        "NOT IN USE: rows of this model's requests are of any width, and requests of "
        "different widths that meet in a batch fail (FAILED_PRECONDITION, "
        f"batching_session.cc). Send several rows in a request instead{limit}. Where "
        "all clients fill up to one width, add",
        0,
    )
    return f"#\n{reason}\n{flags}"


def _as_comment(text, indent):
    start = " " * indent + "# "
    return textwrap.fill(text, 88, initial_indent=start, subsequent_indent=start)


def _as_list(items, indent):
    """YAML of a list of strings, each in quotes."""
    return textwrap.indent("\n".join(f'- "{item}"' for item in items), " " * indent)
