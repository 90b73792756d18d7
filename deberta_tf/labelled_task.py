"""What tasks with named classes share: names travel, and map by name."""

import os

import keras

from deberta_tf import files
from deberta_tf.base_task import DebertaTask
from deberta_tf.checkpoints import configs, folders


class LabelledTask(DebertaTask):
    """Base of the tasks whose head ends in `logits`, one for each named class.

    Subclasses set `num_classes` and `labels`.
    """

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
    def from_preset(cls, preset, load_weights=True, labels=None, **kwargs):
        """`DebertaTask.from_preset`; classes are told apart by name.

        Args:
            preset: str.
            load_weights: bool.
            labels: list of str. Names of the classes in the order of the logits
                wanted. Where the preset has a head with these names, in whatever
                case, its classes are put in this order; where it names none, these
                are its names.
            kwargs: constructor arguments. `num_classes`: wanted where the preset
                has no head, or to start a new one.

        Raises:
            ValueError: if the preset's head has other classes, and `num_classes` does
                not say that a new one is wanted.
        """
        if labels is None:
            return super().from_preset(preset, load_weights=load_weights, **kwargs)
        labels = list(labels)
        count, names = cls.held_classes(preset) if load_weights else (None, None)
        known = names is None and count == len(labels) and "num_classes" not in kwargs
        if known or _are_alike(labels, names):
            task = super().from_preset(preset, **kwargs)
            task.labels = labels if known else task.labels
            task.order_classes(labels)
            return task
        if count is not None and "num_classes" not in kwargs:
            raise ValueError(
                "labels must be those of the preset's head, in any order, unless "
                f"num_classes asks for a new one. Received: {labels}; the preset has "
                f"{names or count}"
            )
        kwargs = {"num_classes": len(labels), **kwargs, "labels": labels}
        return super().from_preset(preset, load_weights=load_weights, **kwargs)

    @classmethod
    def from_checkpoint(cls, checkpoint, *args, **kwargs):
        if kwargs.get("labels") is not None:
            # Other names than those of its head: `from_preset` saw to that.
            checkpoint = checkpoint.without("classifier.")
        return super().from_checkpoint(checkpoint, *args, **kwargs)

    @classmethod
    def held_classes(cls, preset):
        """What a preset tells of its classes.

        Returns:
            (number of classes, list of their names); None for what it does not tell.
        """
        preset = os.fspath(preset)
        checkpoint = folders.open_checkpoint(preset)
        if checkpoint is not None:
            count = checkpoint.rows("classifier.weight")
            return count, configs.read_labels(checkpoint.config) if count else None
        path = folders.find_file(preset, "task.json")
        task = path and files.read_json(path)
        if not task or task["registered_name"] != keras.saving.get_registered_name(cls):
            return None, None
        return task["config"]["num_classes"], task["config"]["labels"]

    @classmethod
    def foreign_arguments(cls, checkpoint, num_classes=None, **given):
        labels = configs.read_labels(checkpoint.config)
        rows = checkpoint.rows("classifier.weight")
        num_classes = num_classes or rows or (labels and len(labels))
        if labels is not None and len(labels) != num_classes:
            labels = None
        arguments = super().foreign_arguments(checkpoint, **given)
        return {**arguments, "num_classes": num_classes, "labels": labels}

    def foreign_entries(self):
        labels = configs.label_config(self.labels, self.num_classes)
        return {**super().foreign_entries(), **labels}


def check_classes(num_classes, labels):
    """Refuses a head without classes, and labels that do not name every class."""
    if num_classes is None:
        raise ValueError(
            "num_classes must be given: the preset, if any, holds no head of this task"
        )
    if labels is None:
        return
    if len(labels) != num_classes:
        raise ValueError(
            "labels must name every class. Received: "
            f"num_classes={num_classes}, {len(labels)} labels"
        )
    if len({_key(name) for name in labels}) < len(labels):
        raise ValueError(f"labels must differ. Received: {list(labels)}")


def _are_alike(labels, names):
    return names is not None and sorted(map(_key, labels)) == sorted(map(_key, names))


def _key(name):
    return str(name).casefold()
