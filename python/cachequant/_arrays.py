"""Arrays of other libraries as NumPy arrays."""

import numpy as np


def to_numpy(value):
    """A NumPy array over the memory of `value` where that is possible: a tensor of PyTorch on the
    CPU, whatever speaks DLPack or the array interface, or a sequence of numbers."""
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
    """`value` as a C-contiguous NumPy array, of another type if `dtype` says so."""
    array = to_numpy(value)
    if dtype is not None and array.dtype != dtype:
        array = array.astype(dtype)
    # ascontiguousarray would make one axis of none
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
