"""tests/models/features-tiny.onnx: a feature extractor with random weights, `image` [N,3,32,32] -> `features` [N,12], `logits` [N,5].

    python tests/golden/make_features_tiny.py OUT.onnx
"""
import sys
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
weights = {
    "conv": rng.standard_normal((12, 3, 5, 5)) / 5,
    "conv_bias": rng.standard_normal(12) / 4,
    "head": rng.standard_normal((12, 5)) * 2,
    "head_bias": rng.standard_normal(5),
}
nodes = [
    helper.make_node("Conv", ["image", "conv", "conv_bias"], ["c"], strides=[3, 3]),
    helper.make_node("Relu", ["c"], ["r"]),
    helper.make_node("ReduceMean", ["r"], ["features"], axes=[2, 3], keepdims=0),
    helper.make_node("Gemm", ["features", "head", "head_bias"], ["logits"]),
]
value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
graph = helper.make_graph(
    nodes, "features", [value("image", ["N", 3, 32, 32])], [value("features", ["N", 12]), value("logits", ["N", 5])],
    [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model)
onnx.save(model, sys.argv[1])
