"""Strategies of several CPU devices, see conftest.py."""

import functools

import tensorflow as tf


@functools.cache
def mirrored(count):
    """The one strategy of so many devices: TensorFlow numbers the collectives of a
    process by strategy, and mixes up those of two.

    For the same reason it stands in a module that is imported under one name.
    """
    # Nor can collectives of two sizes follow each other: four devices meet on one of
    # them, by `merge_call`.
    meeting = tf.distribute.ReductionToOneDevice() if count == 4 else None
    devices = [f"CPU:{i}" for i in range(count)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=meeting)
