# SPDX-License-Identifier: Apache-2.0
"""Just enough of ONNX's format to look at a graph and to keep a part of it.

ONNX Runtime offers neither, and the package ``onnx`` is not needed to render. The format is that of
protocol buffers: a message is a list of fields, each a number with a value. Messages are read
where they lie; what is kept is copied byte by byte, so nothing in it can change. How many fields
are looked at is bounded, so that no file takes long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.errors import UnexpectedGraphError
from lipsync_fast.untrusted import limits

_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_DTYPES: dict[int, np.dtype[np.generic]] = {
    1: np.dtype("<f4"),
    7: np.dtype("<i8"),
    10: np.dtype("<f2"),
}
_MOST_FIELDS = 64
_OPSET = 8
_MODEL_FIELDS = frozenset({*range(1, _OPSET + 1), 14})
_GRAPH_FIELDS = frozenset({_NODE, 2, _INITIALIZER, 10, _INPUT, _OUTPUT, _VALUE_INFO, 16})
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        kind: its operator, such as ``Conv``.
        attributes: integers, lists of integers and strings; others are left out, and named in
            ``unread``.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | bytes | tuple[int, ...]]
    unread: frozenset[str]
    raw: memoryview


@dataclass(slots=True)
class Graph:
    """A model's graph.

    Attributes:
        nodes: in their order.
        tensors: initializers by name; ``tensor`` reads one.
        opsets: domain and version of each set of operators.
        unusual: what else the model holds: functions, training, sparse tensors, fields unknown.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, memoryview] = field(default_factory=dict)
    inputs: dict[str, memoryview] = field(default_factory=dict)
    outputs: dict[str, memoryview] = field(default_factory=dict)
    opsets: list[tuple[str, int]] = field(default_factory=list)
    unusual: list[str] = field(default_factory=list)
    _model: list[memoryview] = field(default_factory=list)
    _other: list[memoryview] = field(default_factory=list)
    _raw_tensors: dict[str, memoryview] = field(default_factory=dict)

    @classmethod
    def parse(cls, model: bytes | memoryview) -> Graph:
        """The graph of a serialized model.

        Raises:
            UnexpectedGraphError: it is none.
        """
        found, graphs = cls(), 0
        for number, value, raw in _fields(memoryview(model)):
            if number == _OPSET:
                found.opsets.append(_opset(_message(value)))
            elif number not in _MODEL_FIELDS:
                found.unusual.append(f"a model with a field {number}")
            if number != _GRAPH:
                found._model.append(raw)
                continue
            graphs += 1
            for part, inner, inner_raw in _fields(_message(value), limits.NETWORK_PARTS):
                found._take(part, inner, inner_raw)
        if graphs != 1:
            raise UnexpectedGraphError(f"{graphs} graphs in one model")
        return found

    def _take(self, part: int, inner: memoryview | int, raw: memoryview) -> None:
        if part == _NODE:
            self.nodes.append(_node(_message(inner), raw))
        elif part == _INITIALIZER:
            name = _name(_message(inner), 8)
            if name in self.tensors:
                self.unusual.append(f"constant {name[:40]!r} twice")
            self.tensors[name], self._raw_tensors[name] = _message(inner), raw
        elif part in (_INPUT, _OUTPUT):
            name, known = _name(_message(inner), 1), self.inputs if part == _INPUT else self.outputs
            if name in known:
                self.unusual.append(f"input or output {name[:40]!r} twice")
            known[name] = raw
        elif part != _VALUE_INFO:
            if part not in _GRAPH_FIELDS:
                self.unusual.append(f"a graph with a field {part}")
            self._other.append(raw)

    def tensor(self, name: str) -> NDArray[np.generic]:
        """An initializer's values (float32, float16 or int64).

        Raises:
            UnexpectedGraphError: there is none of that name, or it is stored in another way.
        """
        if name not in self.tensors:
            raise UnexpectedGraphError(f"{name} is not a constant")
        shape: list[int] = []
        kind, data = 0, memoryview(b"")
        for number, value, _ in _fields(self.tensors[name]):
            if number == 1:
                shape += _numbers(value)
            elif number == 2:
                kind = _number(value)
            elif number == 9:
                data = _message(value)
            elif number in (13, 14):
                raise UnexpectedGraphError(f"{name} lies in another file (external data)")
            elif number != 8:
                raise UnexpectedGraphError(f"{name} has a field {number}")
        dtype = _DTYPES.get(kind)
        if dtype is None or any(n < 0 for n in shape):
            raise UnexpectedGraphError(f"{name} is of type {kind} and shape {shape}")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise UnexpectedGraphError(f"{name} has {len(data)} bytes for shape {shape}")
        return np.frombuffer(data, dtype).reshape(shape)

    def input_shape(self, name: str) -> tuple[int, ...]:
        """An input's shape, with 1 for what is left open.

        Raises:
            UnexpectedGraphError: it is no tensor, or says no shape.
        """
        message = _only(_fields(self.inputs[name]), _INPUT)
        for number in (2, 1, 2):  # of the value the type, of that the tensor's, of that the shape
            message = _only(_fields(message), number)
        shape = []
        for _, dimension, _ in _fields(message):
            sizes = [value for n, value, _ in _fields(_message(dimension)) if n == 1]
            shape.append(_number(sizes[-1]) if sizes else 1)
        return tuple(shape)

    def part(
        self, nodes: Iterable[Node], inputs: Iterable[str], output: str, shape: tuple[int, ...]
    ) -> bytes:
        """A model of some of the nodes.

        Args:
            nodes: in their order.
            inputs: names of the graph's inputs that are kept.
            output: what it yields, float32.
            shape: of the output, behind the batch.

        Raises:
            UnexpectedGraphError: a node needs what is not there.
        """
        kept, wanted = list(nodes), list(inputs)
        names = {name for node in kept for name in node.inputs if name}
        constants = [name for name in self.tensors if name in names]
        there = {*wanted, *constants, *(name for node in kept for name in node.outputs)}
        if missing := (names | {output}) - there:
            raise UnexpectedGraphError(f"{min(missing)} is missing from a part of the graph")
        graph: list[bytes | memoryview] = [
            *(node.raw for node in kept),
            *self._other,
            *(self._raw_tensors[name] for name in constants),
            *(self.inputs[name] for name in wanted),
            _written(_OUTPUT, _value_info(output, shape)),
        ]
        return b"".join([*self._model, _written(_GRAPH, b"".join(graph))])


def _fields(
    data: memoryview, most: int = _MOST_FIELDS
) -> Iterator[tuple[int, memoryview | int, memoryview]]:
    """Number, value and whole bytes of each field."""
    at, end, count = 0, len(data), 0
    while at < end:
        begun, count = at, count + 1
        if count > most:
            raise UnexpectedGraphError(f"more than {most} fields in one message")
        key, at = _varint(data, at)
        if key >> 32:
            raise UnexpectedGraphError("no ONNX model")
        value: memoryview | int
        if key & 7 == _VARINT:
            value, at = _varint(data, at)
        elif key & 7 == _BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif key & 7 in (_FIXED64, _FIXED32):
            size = 8 if key & 7 == _FIXED64 else 4
            value, at = data[at : at + size], at + size
        else:
            raise UnexpectedGraphError("no ONNX model")
        if at > end:
            raise UnexpectedGraphError("an ONNX model that ends too early")
        yield key >> 3, value, data[begun:at]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise UnexpectedGraphError("an ONNX model that ends too early")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise UnexpectedGraphError("no ONNX model")


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise UnexpectedGraphError("no ONNX model")
    return value


def _number(value: memoryview | int) -> int:
    if not isinstance(value, int):
        raise UnexpectedGraphError("no ONNX model")
    return value - (1 << 64) if value >> 63 else value


def _numbers(value: memoryview | int) -> list[int]:
    """The numbers of a repeated field: one, or many packed."""
    if isinstance(value, int):
        return [_number(value)]
    found: list[int] = []
    at = 0
    while at < len(value):
        if len(found) == _MOST_FIELDS:
            raise UnexpectedGraphError(f"a list of more than {_MOST_FIELDS} numbers")
        one, at = _varint(value, at)
        found.append(_number(one))
    return found


def _text(value: memoryview | int) -> str:
    try:
        return str(_message(value), "utf-8")
    except UnicodeDecodeError:
        raise UnexpectedGraphError("a name that is no text") from None


def _only(fields: Iterable[tuple[int, memoryview | int, memoryview]], number: int) -> memoryview:
    """The one message of that number: of several, readers would make different things."""
    found = [value for n, value, _ in fields if n == number]
    if len(found) != 1:
        raise UnexpectedGraphError(f"{len(found)} fields {number} where one belongs")
    return _message(found[0])


def _opset(data: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value, _ in _fields(data):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            version = _number(value)
    return domain, version


def _name(data: memoryview, number: int) -> str:
    names = [_text(value) for n, value, _ in _fields(data) if n == number]
    if len(names) != 1:
        raise UnexpectedGraphError("a value without a name")
    return names[0]


def _node(data: memoryview, raw: memoryview) -> Node:
    inputs, outputs, kind, domain = [], [], "", ""
    attributes: dict[str, int | bytes | tuple[int, ...]] = {}
    unread = set()
    for number, value, _ in _fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            kind = _text(value)
        elif number == 5:
            name, read = _attribute(_message(value))
            if read is None or name in attributes:
                unread.add(name)
            else:
                attributes[name] = read
        elif number == 7:  # may stand before the operator that it belongs to
            domain = _text(value)
    kind = f"{domain}.{kind}" if domain else kind
    return Node(kind, tuple(inputs), tuple(outputs), attributes, frozenset(unread), raw)


def _attribute(data: memoryview) -> tuple[str, int | bytes | tuple[int, ...] | None]:
    name, kind, numbers, one, text = "", 0, [], 0, b""
    for number, value, _ in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 3:
            one = _number(value)
        elif number == 4:
            text = bytes(_message(value))
        elif number == 8:
            numbers += _numbers(value)
        elif number == 20:
            kind = _number(value)
    known: dict[int, int | bytes | tuple[int, ...]] = {2: one, 3: text, 7: tuple(numbers)}
    return name, known.get(kind)


def attribute_field(node: Node, name: str, number: int) -> memoryview | None:
    """A field of an attribute that ``Node.attributes`` leaves out: float (2) or tensor (5)."""
    found = None
    for part, value, _ in _fields(_only(_fields(node.raw), _NODE)):
        if part == 5:
            fields = {n: v for n, v, _ in _fields(_message(value))}
            if number in fields and _text(fields.get(1, memoryview(b""))) == name:
                found = _message(fields[number])
    return found


def _written(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return _written_varint(number << 3) + _written_varint(value)
    return _written_varint(number << 3 | _BYTES) + _written_varint(len(value)) + value


def _written_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _value_info(name: str, shape: tuple[int, ...]) -> bytes:
    dimensions = [_written(1, _written(2, b"batch")), *(_written(1, _written(1, n)) for n in shape)]
    tensor = _written(1, 1) + _written(2, b"".join(dimensions))
    return _written(1, name.encode()) + _written(2, _written(1, tensor))
