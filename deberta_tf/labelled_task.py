"""What tasks with named classes share: names travel, and map by name."""

import os
import warnings

import keras
import tensorflow as tf

from deberta_tf import files
from deberta_tf.base_task import DebertaTask, warn_of_fresh
from deberta_tf.checkpoints import configs, folders


class LabelledTask(DebertaTask):
    """Base of the tasks whose head ends in `logits`, one for each named class.

    Args:
        backbone: `DebertaBackbone`.
        head: layer with `num_classes`.
        preprocessor: KerasHub preprocessor, or None.
        labels: list of str, names of the classes; or None.
        kwargs: as `DebertaTask` takes them.
    """

    def __init__(self, backbone, head, preprocessor=None, labels=None, **kwargs):
        # `compile`, which Keras calls at the end of its own, asks for it.
        self.num_classes = head.num_classes
        super().__init__(backbone, head, preprocessor, **kwargs)
        self.labels = None if labels is None else list(labels)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "labels": self.labels,
        }

    @property
    def class_names(self):
        """Names of the classes in the order of the logits; without any, numbers."""
        return self.labels or [str(index) for index in range(self.num_classes)]

    def scores_of(self, logits):
        """What a served classifier answers: `label`, its probability `score`, all
        `labels`, and beside them their `scores`; a regression `score` alone."""
        if self.num_classes == 1:
            return {"score": logits[:, 0]}
        names, scores = tf.constant(self.class_names), tf.nn.softmax(logits)
        return {
            "label": tf.gather(names, tf.argmax(scores, axis=-1)),
            "score": tf.reduce_max(scores, axis=-1),
            "labels": tf.broadcast_to(names, tf.shape(scores)),
            "scores": scores,
        }

    def order_classes(self, labels):
        """Puts the classes in another order, by their names.

        Args:
            labels: list of str. The names of the task's classes, in whatever case.

        Raises:
            ValueError: if they are not the names of the task's classes.
        """
        if not _are_alike(labels, self.labels):
            raise ValueError(
                "labels must be the names of the classes in another order. Received: "
                f"{labels}; the task has {self.labels}"
            )
        at = {_key(name): index for index, name in enumerate(self.labels)}
        order = [at[_key(name)] for name in labels]
        kernel, bias = self.head.logits.kernel, self.head.logits.bias
        kernel.assign(kernel.numpy()[:, order])
        bias.assign(bias.numpy()[order])
        self.labels = list(labels)

    @classmethod
    def from_preset(
        cls, preset, load_weights=True, num_classes=None, labels=None, **kwargs
    ):
        """`DebertaTask.from_preset`; classes are told apart by name.

        Args:
            preset: str.
            load_weights: bool.
            num_classes: int. Wanted where the preset has no head and `labels` are not
                given, or to start new logits in the place of others.
            labels: list of str. Names of the classes in the order of the logits
                wanted. Where the preset has a head with these names, in whatever
                case, its classes are put in this order; where it names none, these
                are its names.
            kwargs: constructor arguments.

        Raises:
            ValueError: if the preset's head has other classes, and `num_classes` does
                not say that new ones are wanted.
        """
        labels = None if labels is None else list(labels)
        count, names = (
            cls.held_classes(preset, labels) if load_weights else (None, None)
        )
        if count is not None and _may_keep(count, names, num_classes, labels):
            task = super().from_preset(preset, **kwargs)
            task.labels = names or labels
            if labels is not None:
                task.order_classes(labels)
            return task
        if count is not None and num_classes is None:
            raise ValueError(
                "labels must be those of the preset's head, in any order, unless "
                f"num_classes asks for new ones. Received: {labels}; the preset has "
                f"{names or count}"
            )
        if num_classes is None and labels is not None:
            num_classes = len(labels)
        if count is not None and folders.is_ours(preset):
            return cls._with_new_logits(preset, num_classes, labels, **kwargs)
        classes = {"num_classes": num_classes, "labels": labels}
        # KerasHub takes even `num_classes=None` for a wish for a new head.
        classes = {name: value for name, value in classes.items() if value is not None}
        return super().from_preset(preset, load_weights, **classes, **kwargs)

    @classmethod
    def _with_new_logits(cls, preset, num_classes, labels, **kwargs):
        """A preset of ours with other classes: all else of its head is kept."""
        old = super().from_preset(preset, **kwargs)
        config = {**old.get_config(), "num_classes": num_classes, "labels": labels}
        for name in ("backbone", "preprocessor"):
            config[name] = getattr(old, name)
        task = cls(**config)
        for name in ("pooler", "hidden"):
            layer = getattr(old.head, name, None)
            if layer is not None:
                getattr(task.head, name).set_weights(layer.get_weights())
        warn_of_fresh(task, ["classifier"])
        return task

    @classmethod
    def from_checkpoint(cls, checkpoint, *args, **kwargs):
        if kwargs.get("labels") is not None:
            # Other names than those of its head: `from_preset` saw to that.
            checkpoint = checkpoint.without("classifier.")
        return super().from_checkpoint(checkpoint, *args, **kwargs)

    @classmethod
    def held_classes(cls, preset, labels=None):
        """What a preset tells of its classes.

        Args:
            preset: str.
            labels: list of str. Where they are the placeholders of Hugging Face, these
                are names as well.

        Returns:
            (number of classes, list of their names); None for what it does not tell.
        """
        preset = os.fspath(preset)
        checkpoint = folders.open_checkpoint(preset)
        if checkpoint is not None:
            count = checkpoint.rows("classifier.weight")
            if not count:
                return None, None
            names = configs.read_labels(checkpoint.config)
            unnamed = configs.placeholders(count)
            return count, unnamed if _are_alike(labels, unnamed) else names
        path = folders.find_file(preset, "task.json")
        task = path and files.read_json(path)
        if not task or task["registered_name"] != keras.saving.get_registered_name(cls):
            return None, None
        return task["config"]["num_classes"], task["config"]["labels"]

    @classmethod
    def foreign_arguments(cls, checkpoint, num_classes=None, **given):
        labels = configs.read_labels(checkpoint.config)
        if checkpoint.config.get("problem_type") == "multi_label_classification":
            warnings.warn(
                "The checkpoint answers with several labels at once: its logits are "
                "right, but neither the default loss nor the export is for that",
                stacklevel=5,
            )
        rows = checkpoint.rows("classifier.weight")
        num_classes = num_classes or rows or (labels and len(labels))
        if labels is not None and len(labels) != num_classes:
            labels = None
        arguments = super().foreign_arguments(checkpoint, **given)
        return {**arguments, "num_classes": num_classes, "labels": labels}

    def foreign_entries(self):
        labels = configs.label_config(self.labels, self.num_classes)
        return {**super().foreign_entries(), **labels}


def class_count(num_classes, labels, at_least=1):
    """The number of classes that is given, or that of the labels.

    Raises:
        ValueError: if there are too few, or labels that do not name every class.
    """
    if num_classes is None and labels is not None:
        num_classes = len(labels)
    if num_classes is None:
        raise ValueError(
            "num_classes must be given: the preset, if any, holds no head of this task"
        )
    if num_classes < at_least:
        raise ValueError(
            f"num_classes must be at least {at_least}. Received: {num_classes}"
        )
    if labels is None:
        return num_classes
    if len(labels) != num_classes:
        raise ValueError(
            "labels must name every class. Received: "
            f"num_classes={num_classes}, {len(labels)} labels"
        )
    if len({_key(name) for name in labels}) < len(labels):
        raise ValueError(f"labels must differ. Received: {list(labels)}")
    return num_classes


def _may_keep(count, names, num_classes, labels):
    """Whether a head of so many classes of these names is what is asked for."""
    if num_classes not in (None, count):
        return False
    if labels is None or names is None:
        return labels is None or len(labels) == count
    return _are_alike(labels, names)


def _are_alike(labels, names):
    if labels is None or names is None:
        return False
    return sorted(map(_key, labels)) == sorted(map(_key, names))


def _key(name):
    return str(name).casefold()
