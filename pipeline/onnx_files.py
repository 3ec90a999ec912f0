"""What an ONNX file asks for, read from its bytes before any runtime does.

A model may name files beside it that hold its weights. A runtime would open them by paths that the model chooses, and our SHA-256 of the one
file would not cover them. So such models are refused. ONNX is protobuf: numbered fields, nested; only those that lead to weights are followed.
Source: onnx/onnx.proto, protobuf's encoding guide.
"""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.errors import BadInput

_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Messages by name: which of their fields hold which messages."""
_EXTERNAL = 14
_METADATA, _GRAPH, _NODE, _NODE_INPUT, _NODE_OUTPUT, _OP_TYPE = 14, 7, 1, 1, 2, 4
_MAX_DEPTH = 40


def check(name: str, content: bytes, *, see: str) -> None:
    """Raise BadInput unless the bytes are an ONNX model that holds all of its weights. `name` says which file, in messages, `see` where to read on."""
    try:
        fields = list(_fields(content, 0, len(content)))
        graphs = [field for field in fields if field[0] == 7 and field[1] == 2]
        if not graphs:
            raise ValueError("no graph in it")
        outside = _asks_for_files(content, "model", 0, len(content), 0)
    except (ValueError, IndexError) as error:
        raise BadInput(f"{name} is no ONNX model ({error}). Give the .onnx file itself. See {see}.") from error
    if outside:
        raise BadInput(
            f"{name} keeps weights in other files, whose content its SHA-256 does not cover. Save the model as one file: "
            f"onnx.save_model(onnx.load(PATH), NEW_PATH, save_as_external_data=False). See {see}."
        )


def with_metadata(content: bytes, entries: Mapping[str, str]) -> bytes:
    """The model with these entries added to its metadata. Of a message in protobuf, fields may follow in any order, so they are appended."""
    return content + b"".join(
        _field(_METADATA, _field(1, name.encode("utf-8")) + _field(2, value.encode("utf-8"))) for name, value in entries.items()
    )


def _field(number: int, value: bytes) -> bytes:
    length, left = b"", len(value)
    while left >= 0x80:
        length += bytes([left & 0x7F | 0x80])
        left >>= 7
    return bytes([number << 3 | 2]) + length + bytes([left]) + value


def begins_with(content: bytes, source: str, operators: Sequence[str]) -> bool:
    """True when what is done first to the graph's input `source` is these operators, in this order. For bytes that `check` has passed."""
    [*_, graph] = [field for field in _fields(content, 0, len(content)) if field[0] == _GRAPH]
    nodes = [list(_fields(content, *field[2:])) for field in _fields(content, *graph[2:]) if field[0] == _NODE]
    wanted = source.encode("utf-8")
    for operator in operators:
        takers = [node for node in nodes if wanted in _texts(content, node, _NODE_INPUT)]
        if len(takers) != 1 or _texts(content, takers[0], _OP_TYPE) != [operator.encode("ascii")]:
            return False
        [wanted] = _texts(content, takers[0], _NODE_OUTPUT)
    return True


def _texts(content: bytes, fields: Sequence[tuple[int, int, int, int]], number: int) -> list[bytes]:
    return [content[begin:end] for found, _, begin, end in fields if found == number]


def _asks_for_files(content: bytes, kind: str, start: int, stop: int, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    for number, wire, begin, end in _fields(content, start, stop):
        if kind == "tensor" and number == _EXTERNAL and wire == 0 and _varint(content, begin)[0] != 0:
            return True
        inner = _NESTED[kind].get(number)
        if inner == "entry":
            return True
        if inner is not None and wire == 2 and _asks_for_files(content, inner, begin, end, depth + 1):
            return True
    return False


def _fields(content: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, first byte of the value, byte after it) of each field of a message."""
    at = start
    while at < stop:
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            begin, end = at, _varint(content, at)[1]
        elif wire == 2:
            length, begin = _varint(content, at)
            end = begin + length
        elif wire in {1, 5}:
            begin, end = at, at + (8 if wire == 1 else 4)
        else:
            raise ValueError(f"byte {at} begins no field")
        if number == 0 or end > stop:
            raise ValueError(f"the field at byte {at} ends beyond its message")
        yield number, wire, begin, end
        at = end


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"the number at byte {at} does not end")
