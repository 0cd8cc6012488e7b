# SPDX-License-Identifier: Apache-2.0
"""Equal networks are held once, and no longer than someone holds them."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from lipsync_fast.engine.backends.sessions import Sessions


def network(factor: float) -> bytes:
    """Multiplies by a constant."""
    value = onnx.numpy_helper.from_array(np.array([factor], np.float32), "factor")
    given, made = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3])
        for name in ("given", "made")
    )
    node = onnx.helper.make_node("Mul", ["given", "factor"], ["made"])
    graph = onnx.helper.make_graph([node], "x", [given], [made], [value])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())


def test_equal_networks_are_one_and_others_are_not() -> None:
    sessions = Sessions()
    twice, thrice = network(2), network(3)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(sessions.get, [twice, thrice, memoryview(twice), bytearray(twice)]))
    assert made[0] is made[2] is made[3] is not made[1]
    ones = np.ones((1, 3), np.float32)
    assert made[0].run(None, {"given": ones})[0].tolist() == [[2, 2, 2]]
    assert made[1].run(None, {"given": ones})[0].tolist() == [[3, 3, 3]]


def test_what_nobody_holds_is_gone() -> None:
    sessions = Sessions()
    session = sessions.get(network(2))
    gone = weakref.ref(session)
    assert sessions.get(network(2)) is session
    del session
    gc.collect()
    assert gone() is None
    assert sessions.get(network(2)) is not None


def test_what_is_no_network_is_refused_each_time() -> None:
    sessions = Sessions()
    for _ in range(2):
        with pytest.raises(Exception, match=r"(?i)protobuf|model|parse"):
            sessions.get(b"no network")
