"""Conversion of the arrays of other libraries to NumPy arrays."""

import numpy as np


def to_numpy(value):
    """Returns `value` as a NumPy array, without a copy where that is possible.

    `value` is a PyTorch tensor, an object with DLPack or the array interface, or a sequence of
    numbers. Tensors of other devices and of bfloat16 are copied.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # PyTorch: DLPack refuses tensors that require gradients
        value = value.detach()
        if value.device.type != "cpu":
            value = value.cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has no such type
            value = value.float()
        return value.numpy()
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    return np.asarray(value)


def contiguous(value, dtype=None):
    """Returns `value` as a C-contiguous NumPy array, converted to `dtype` if one is given."""
    array = to_numpy(value)
    if dtype is not None and array.dtype != dtype:
        array = array.astype(dtype)
    # ascontiguousarray would turn an array without axes into one with one axis
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
