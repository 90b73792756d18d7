"""The deployment folder, parsed back: its files agree with each other."""

import http.server
import json
import pathlib
import subprocess
import threading

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from deberta_tf import DebertaSentencePieceTokenizer, DebertaTextClassifier
from deberta_tf.files import UsageError, run_command
from tests.serving_protos import message_class
from tests.small_models import make_backbone
from tools import deployment, export_saved_model, serving_requests

PREFIX = "/models/my-model/deployment"


@pytest.fixture(scope="module")
def served(tmp_path_factory, sentencepiece_proto):
    """A folder with versions 1 and 2 of a classifier, exported by the command."""
    folder = tmp_path_factory.mktemp("exports")
    task = DebertaTextClassifier(
        make_backbone(num_layers=1, max_sequence_length=40),
        labels=["calm", "loud | naïve"],
        preprocessor=DebertaTextClassifier.preprocessor_cls(
            DebertaSentencePieceTokenizer(sentencepiece_proto), 40
        ),
    )
    task.save_to_preset(str(folder / "preset"))
    for version in (1, 2):
        export_saved_model.main(
            [
                f"--preset={folder / 'preset'}",
                f"--output={folder / 'my-model'}",
                f"--version={version}",
                "--cpus=2",
            ]
        )
    return folder / "my-model"


@pytest.fixture
def text_of(served):
    return lambda name: (served / "deployment" / name).read_text("utf-8")


@pytest.fixture
def service(text_of):
    """The one service of the compose file."""
    (service,) = yaml.safe_load(text_of("compose.yaml"))["services"].values()
    return service


@pytest.fixture
def objects(text_of):
    """Of Kubernetes, by their kind."""
    found = list(yaml.safe_load_all(text_of("kubernetes.yaml")))
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


@pytest.fixture
def pod(objects):
    return objects["Deployment"]["spec"]["template"]["spec"]


def facts(**changed):
    values = {
        "name": "my-model",
        "version": 1,
        "sequence_length": 512,
        "batches_requests": True,
        "cpus": 4,
        "weights_bytes": 736_000_000,
        "row_bytes": 150_000_000,
        "choices": 1,
        "has_windows": False,
        "num_parameters": 184_000_000,
        "warm_up_tokens": 40_000,
    }
    return deployment.Deployment(**{**values, **changed})


def flags_of(arguments):
    pairs = [flag.removeprefix("--").partition("=") for flag in arguments]
    assert all(flag.startswith("--") for flag in arguments)
    return {name: value for name, _, value in pairs}


def batching_of(text):
    return text_format.Parse(text, message_class("BatchingParameters")())


def test_both_versions_stay_beside_one_deployment(served):
    assert sorted(path.name for path in served.iterdir()) == ["1", "2", "deployment"]
    for version in "12":
        assert (served / version / serving_requests.WARM_UP_PATH).stat().st_size
    written = {path.name for path in (served / "deployment").iterdir()}
    assert written == set(deployment.FILES)


def test_the_server_is_told_of_the_newest_version(text_of):
    config = text_format.Parse(
        text_of("models.config"), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert model.name == "my-model"
    assert model.base_path == "/models/my-model"
    assert model.model_platform == "tensorflow"
    assert model.model_version_policy.latest.num_versions == 1
    assert not model.version_labels


def test_metrics_are_for_prometheus(text_of):
    config = text_format.Parse(
        text_of("monitoring.config"), message_class("MonitoringConfig")()
    )
    assert config.prometheus_config.enable
    assert config.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_a_batch_is_of_rows_that_fit(text_of):
    batching = batching_of(text_of("batching_parameters.txt"))
    assert batching.max_execution_batch_size.value == 32
    assert batching.enable_large_batch_splitting.value
    assert batching.num_batch_threads.value == 2
    # Else a request's own words or ids would be its padding.
    assert not batching.pad_variable_length_inputs


def test_compose_mounts_the_versions_where_the_flags_look(service):
    (mount,) = service["volumes"]
    assert (mount["source"], mount["target"]) == ("..", "/models/my-model")
    assert mount["read_only"]
    flags = flags_of(service["command"])
    assert flags["model_config_file"] == f"{PREFIX}/models.config"
    assert flags["monitoring_config_file"] == f"{PREFIX}/monitoring.config"
    assert flags["batching_parameters_file"] == f"{PREFIX}/batching_parameters.txt"
    assert flags["enable_batching"] == "true"
    assert flags["tensorflow_intra_op_parallelism"] == "2"
    assert service["deploy"]["resources"]["limits"]["cpus"] == "2"


def test_compose_opens_ports_on_this_machine_alone(service):
    assert service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]


def test_kubernetes_has_the_same_settings(objects, pod, text_of):
    config = objects["ConfigMap"]
    for name in deployment.CONFIGS:
        assert config["data"][name].strip() == text_of(name).strip()
    (container,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounts == {"models": "/models/my-model", "config": "/config"}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes["config"]["configMap"]["name"] == config["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"] == {
        "claimName": "my-model-models",
        "readOnly": True,
    }
    flags = flags_of(container["args"])
    for name in ("model_config_file", "monitoring_config_file"):
        folder, _, file = flags[name].rpartition("/")
        assert folder == "/config"
        assert file in config["data"]


def test_compose_and_kubernetes_run_the_same_server(service, pod):
    (container,) = pod["containers"]
    assert container["image"] == service["image"] == deployment.IMAGE
    compose, kubernetes = flags_of(service["command"]), flags_of(container["args"])
    assert set(kubernetes) - set(compose) == {"grpc_channel_arguments"}
    for name, value in compose.items():
        assert kubernetes[name] == value.replace(PREFIX, "/config")
    limits = service["deploy"]["resources"]["limits"]
    of_pod = container["resources"]["limits"]
    assert of_pod == {"cpu": limits["cpus"], "memory": f"{limits['memory']}i"}


def test_probes_ask_for_the_model(pod):
    (container,) = pod["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    status = {"path": "/v1/models/my-model", "port": "rest"}
    assert container["startupProbe"]["httpGet"] == status
    # A server whose REST threads all wait is busy, not dead, and not to be left out.
    for name in ("readinessProbe", "livenessProbe"):
        assert container[name]["tcpSocket"] == {"port": "grpc"}


def test_the_service_reaches_the_pods_and_their_metrics(objects, pod, text_of):
    service = objects["Service"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {one["port"]: one["targetPort"] for one in service["spec"]["ports"]}
    assert ports == {8500: "grpc", 8501: "rest"}
    annotations = service["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/port"] == "8501"
    assert f'"{annotations["prometheus.io/path"]}"' in text_of("monitoring.config")


def test_what_scales_and_what_guards_name_the_deployment(objects):
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "my-model")
    # It would be set back at each `kubectl apply`.
    assert "replicas" not in objects["Deployment"]["spec"]
    selector = objects["Deployment"]["spec"]["selector"]
    assert objects["PodDisruptionBudget"]["spec"]["selector"] == selector


def test_pods_are_replaced_when_settings_change_but_not_for_a_version():
    def checksum(**changed):
        text = deployment.render(facts(**changed))["kubernetes.yaml"]
        (one,) = [
            one for one in yaml.safe_load_all(text) if one["kind"] == "Deployment"
        ]
        return one["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum(cpus=8) != checksum(cpus=4)
    assert checksum(version=7) == checksum(version=1)


@pytest.mark.parametrize("name", ["true", "no", "null", "y"])
def test_a_name_that_yaml_takes_for_a_value_stays_a_string(name):
    texts = deployment.render(facts(name=name))
    assert yaml.safe_load(texts["compose.yaml"])["name"] == name
    for one in yaml.safe_load_all(texts["kubernetes.yaml"]):
        assert one["metadata"]["labels"] == {"app.kubernetes.io/name": name}
        assert one["metadata"]["name"] in (name, f"{name}-config")


@pytest.mark.parametrize(
    ("status", "healthy"),
    [
        ({"model_version_status": [{"state": "AVAILABLE"}]}, True),
        ({"model_version_status": [{"state": "LOADING"}]}, False),
        ({"error": "the model is UNAVAILABLE"}, False),
        (None, False),
    ],
)
def test_the_health_check_is_of_bash_alone(service, status, healthy):
    class Status(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/v1/models/my-model" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(status, indent=1).encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Status)
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    try:
        if status is None:
            server.shutdown()
            server.server_close()
        *shell, commands = service["healthcheck"]["test"][1:]
        assert "8501" in commands
        commands = commands.replace("8501", str(server.server_port))
        run = subprocess.run([*shell, commands], capture_output=True, timeout=30)
    finally:
        server.shutdown()
        server.server_close()
    assert (run.returncode == 0) == healthy


def test_the_card_tells_of_the_model(text_of):
    card = text_of("MODEL_CARD.md")
    assert "# my-model, version 2" in card
    # A bar would end the cell.
    assert r"| classes | `calm`, `loud \| naïve` |" in card
    row = next(line for line in card.splitlines() if line.startswith("| `text_pairs`"))
    assert "`text` string (any); `text_pair` string (any)" in row
    assert "`scores` float32 (any, 2)" in row
    assert "longest row is of 40 tokens" in card


def test_the_command_of_the_card_has_no_paths_of_the_machine(text_of, served):
    card = text_of("MODEL_CARD.md")
    assert "--preset=preset --output=my-model --version=2 --cpus=2" in card
    assert str(served.parent) not in card


def test_a_path_after_its_flag_is_shortened_too():
    argv = ["--preset", "/a=b/c/preset/", "--output=/x=y/out", "--name", "n"]
    command = export_saved_model.told_command(argv)
    assert command.endswith(" --preset preset --output=out --name n")


def test_without_a_number_the_cores_of_this_machine_are_asked_for(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    flags = ["--preset=a", "--output=b"]
    assert export_saved_model.parse(flags).cpus == 3
    assert export_saved_model.parse([*flags, "--cpus=1"]).cpus == 1


def test_the_request_of_the_card_is_one_for_the_rest_api(text_of):
    line = next(x for x in text_of("MODEL_CARD.md").splitlines() if "curl" in x)
    body = json.loads(line.split("'")[1])
    assert list(body) == ["instances"]
    assert [list(one) for one in body["instances"]] == [["text"]]
    assert line.endswith("http://localhost:8501/v1/models/my-model:predict")


def test_no_placeholder_is_left(served):
    for path in (served / "deployment").iterdir():
        assert "$" not in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=My_Model"], "--name 'My_Model' is no name to serve by"),
        (["--output=out", "--name=1st"], "--name '1st' is no name"),
        (["--output=out", f"--name={'a' * 64}"], "is no name to serve by"),
        (["--output=out", "--name=ends-"], "--name 'ends-' is no name"),
        (["--output=out", "--cpus=0"], "--cpus must be at least 1"),
        (["--output=out", "--version=-1"], "--version must be at least 0"),
        (["--output=a-file"], "a-file' is not a folder"),
        (["--output=a-file/out"], "a-file' is not a folder"),
        (["--output=has-3", "--version=3"], "3' exists"),
        (["--output=has-3", "--version=2"], "--version 2 would not be served"),
        (["--output=has-others", "--version=1"], "holds 'notes.txt'"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "preset").mkdir()
    (tmp_path / "a-file").touch()
    (tmp_path / "has-3" / "3").mkdir(parents=True)
    (tmp_path / "has-others" / "deployment").mkdir(parents=True)
    (tmp_path / "has-others" / "deployment" / "notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        run_command(export_saved_model.main, ["--preset=preset", *arguments])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_permission_is_told(tmp_path, monkeypatch):
    # As it is for users other than root, who may write everywhere.
    monkeypatch.setattr("os.access", lambda path, mode: pathlib.Path(path) != tmp_path)
    with pytest.raises(UsageError, match="can't be written to"):
        export_saved_model.check_writable(str(tmp_path / "a" / "b"))
