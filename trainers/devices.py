"""Where a run computes: the strategy of its devices, and what each host reads."""

import json
import os

import tensorflow as tf

from deberta_tf import files


def make_strategy(config):
    """The tf.distribute strategy of a run, made before anything is computed.

    Args:
        config: `RunConfig`. With `tpu`: TPUStrategy. Else, where TF_CONFIG tells of
            several workers: MultiWorkerMirroredStrategy. Else, of `num_replicas`
            devices, or of all GPUs where it is None: MirroredStrategy, or the default
            one where that is a single device.

    Raises:
        UsageError: if there are fewer GPUs than asked for, the batch can't be divided,
            or the TPU can't be reached.
    """
    strategy = _strategy(config)
    parts = strategy.num_replicas_in_sync * config.gradient_accumulation_steps
    if config.batch_size % parts:
        raise files.UsageError(
            f"batch_size must be divisible by {parts}: {strategy.num_replicas_in_sync} "
            "replicas, gradient_accumulation_steps="
            f"{config.gradient_accumulation_steps}. Received: {config.batch_size}"
        )
    return strategy


def is_chief():
    """Whether this process is the one that writes: the only one, or the first."""
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    task = config.get("task", {})
    first = "chief" if config.get("cluster", {}).get("chief") else "worker"
    return task.get("type", first) == first and task.get("index", 0) == 0


def is_multi_worker():
    """Whether the run has several processes."""
    return _num_workers() > 1


def distribute(strategy, make_batches, batch_size):
    """The batches of a run, each device's part on its device.

    Args:
        strategy: of `make_strategy`.
        make_batches: callable from (host, num_hosts) to a tf.data.Dataset of that
            host's part of each global batch, a block of its rows.
        batch_size: int, rows of a global batch.

    Returns:
        tf.data.Dataset, or a distributed one.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return make_batches(0, 1)

    def of_host(context):
        batches = make_batches(context.input_pipeline_id, context.num_input_pipelines)
        return batches.rebatch(batch_size // replicas, drop_remainder=True).prefetch(2)

    return strategy.distribute_datasets_from_function(of_host)


def sum_over_hosts(strategy):
    """How the processes of a run add up what each of them has.

    Args:
        strategy: of `make_strategy`.

    Returns:
        Callable from a list of floats to the sums over all processes, times the devices
        of one where there are several. All must call it, equally often: each waits for
        the others.
    """
    if not is_multi_worker():
        return list

    def of_replica(values):
        # Else the tensor is on no device, and can't be reduced.
        values = tf.identity(values)
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, values)

    add = tf.function(lambda values: strategy.run(of_replica, args=(values,)))

    def sums(values):
        added = add(tf.constant(values, tf.float32))
        return strategy.experimental_local_results(added)[0].numpy().tolist()

    return sums


def describe(strategy):
    """The devices in words."""
    replicas = strategy.num_replicas_in_sync
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return f"{replicas} TPU cores"
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if replicas == 1:
        return f"one {kind}"
    workers = f", {_num_workers()} workers" if is_multi_worker() else ""
    return f"{replicas} {kind} devices{workers}"


def _strategy(config):
    if config.tpu is not None:
        return _tpu(config.tpu)
    if is_multi_worker():
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_physical_devices("GPU")
    count = config.num_replicas or max(1, len(gpus))
    if gpus and count > len(gpus):
        raise files.UsageError(
            f"num_replicas is {count}, but this machine has {len(gpus)} GPUs"
        )
    if count == 1:
        return tf.distribute.get_strategy()
    if not gpus:
        _divide_cpu(count)
    kind = "GPU" if gpus else "CPU"
    return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(count)])


def _divide_cpu(count):
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = tf.config.get_logical_device_configuration(cpu) or []
    if len(parts) < count:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )


def _tpu(name):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        reason = str(error).partition("\n")[0]
        raise files.UsageError(f"no TPU {name!r} could be used: {reason}") from None


def _num_workers():
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    return len(cluster.get("worker", [])) + len(cluster.get("chief", []))
