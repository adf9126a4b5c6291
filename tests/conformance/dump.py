"""Writes the ONNX project's node tests to DIR, one folder per test: model.onnx, test_data_set_0/{input,output}_J.pb.

    python dump.py DIR

Older releases of the `onnx` package carry these folders ready-made; newer ones carry the Python code that makes them.
Tests with sequence, map or optional values get a folder with the model only, so that the table can say why they are refused.
"""

import os
import random
import shutil
import sys

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests


def write(path, message):
    with open(path, "wb") as f:
        f.write(message.SerializeToString())


def tensor(value, name):
    if isinstance(value, TensorProto):
        return value
    return numpy_helper.from_array(np.asarray(value), name)


def dump(case, folder):
    if case.model is None:  # a release that carries the folders
        shutil.copytree(case.model_dir, folder, dirs_exist_ok=True)
        return
    os.makedirs(folder, exist_ok=True)
    write(os.path.join(folder, "model.onnx"), case.model)
    plain = all(v.type.HasField("tensor_type") for v in [*case.model.graph.input, *case.model.graph.output])
    if not plain:
        return
    for i, (inputs, outputs) in enumerate(case.data_sets):
        data = os.path.join(folder, f"test_data_set_{i}")
        os.makedirs(data, exist_ok=True)
        for kind, values, infos in (("input", inputs, case.model.graph.input), ("output", outputs, case.model.graph.output)):
            for j, (value, info) in enumerate(zip(values, infos)):
                write(os.path.join(data, f"{kind}_{j}.pb"), tensor(value, info.name))


def main():
    np.random.seed(0)
    random.seed(0)
    target = sys.argv[1]
    cases = load_model_tests(kind="node")
    for case in cases:
        dump(case, os.path.join(target, case.name))
    print(f"{len(cases)} node tests of onnx {onnx.__version__} in {target}")


main()
