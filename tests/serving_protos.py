"""Messages of TF Serving's configuration that its Python package does not hold."""

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "bool": _FIELD.TYPE_BOOL,
    "int64": _FIELD.TYPE_INT64,
    "string": _FIELD.TYPE_STRING,
}
# By name: type and number, as in tensorflow_serving/config/monitoring_config.proto and
# servables/tensorflow/session_bundle_config.proto.
_MESSAGES = {
    "PrometheusConfig": {"enable": ("bool", 1), "path": ("string", 2)},
    "MonitoringConfig": {"prometheus_config": (".test.PrometheusConfig", 1)},
    "BatchingParameters": {
        "max_batch_size": (".google.protobuf.Int64Value", 1),
        "batch_timeout_micros": (".google.protobuf.Int64Value", 2),
        "max_enqueued_batches": (".google.protobuf.Int64Value", 3),
        "num_batch_threads": (".google.protobuf.Int64Value", 4),
        "thread_pool_name": (".google.protobuf.StringValue", 5),
        "allowed_batch_sizes": ("repeated int64", 6),
        "pad_variable_length_inputs": ("bool", 7),
        "enable_large_batch_splitting": (".google.protobuf.BoolValue", 8),
        "max_execution_batch_size": (".google.protobuf.Int64Value", 9),
    },
}


def message_class(name):
    """The class of a message: "MonitoringConfig" or "BatchingParameters"."""
    file = descriptor_pb2.FileDescriptorProto(
        name="test/serving.proto",
        package="test",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for message, fields in _MESSAGES.items():
        descriptor = file.message_type.add(name=message)
        for field, (kind, number) in fields.items():
            is_repeated = kind.startswith("repeated ")
            kind = kind.removeprefix("repeated ")
            one = descriptor.field.add(name=field, number=number)
            one.label = _FIELD.LABEL_REPEATED if is_repeated else _FIELD.LABEL_OPTIONAL
            one.type = _TYPES.get(kind, _FIELD.TYPE_MESSAGE)
            if kind not in _TYPES:
                one.type_name = kind
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test.{name}"))
