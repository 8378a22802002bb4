"""Arrow's C data interface: what an array consists of, in whatever memory, as its exporter's capsules tell.

The structs are those of https://arrow.apache.org/docs/format/CDataInterface.html and CDeviceDataInterface.html.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

__all__ = ["CUDA_MEMORY", "HOST_MEMORY", "ArrowColumn", "device_type", "exported"]

# Types of devices, which are DLPack's: the host; a GPU's own memory, and managed memory.
HOST_MEMORY, CUDA_MEMORY = (1,), (2, 13)


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(_Schema))),
    ("dictionary", ctypes.POINTER(_Schema)),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]
_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
    ("dictionary", ctypes.POINTER(_Array)),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]


class _DeviceArray(ctypes.Structure):
    _fields_ = [
        ("array", _Array),
        ("device_id", ctypes.c_int64),
        ("device_type", ctypes.c_int32),
        ("sync_event", ctypes.POINTER(ctypes.c_void_p)),
        ("reserved", ctypes.c_int64 * 3),
    ]


class ArrowColumn(NamedTuple):
    """One array.

    Attributes
    ----------
    format : str
        Its type, as the interface writes it.
    length, null_count, offset : int
        `null_count` is -1 where it is not known.
    buffers : tuple of int
        Addresses; 0: there is none.
    children : tuple of ArrowColumn
    held : object
        What keeps the memory.
    event : int
        A CUDA event that has to be waited for; 0: none.
    """

    format: str
    length: int
    null_count: int
    offset: int
    buffers: tuple[int, ...]
    children: tuple[ArrowColumn, ...]
    held: Any
    event: int = 0


def device_type(column: Any) -> int:
    """Of what exports a device's array: where it lies."""
    _, capsule = column.__arrow_c_device_array__()
    return int(_DeviceArray.from_address(_address(capsule, b"arrow_device_array")).device_type)


def exported(column: Any) -> ArrowColumn:
    """What an array consists of that a library exports, be it the host's or a device's."""
    if hasattr(column, "__arrow_c_device_array__"):
        held = column.__arrow_c_device_array__()
        of_device = _DeviceArray.from_address(_address(held[1], b"arrow_device_array"))
        array, event = of_device.array, of_device.sync_event[0] if of_device.sync_event else 0
    else:
        held = column.__arrow_c_array__()
        array, event = _Array.from_address(_address(held[1], b"arrow_array")), 0
    schema = _Schema.from_address(_address(held[0], b"arrow_schema"))
    return _column(schema, array, held)._replace(event=event or 0)


def _column(schema: _Schema, array: _Array, held: Any) -> ArrowColumn:
    children = [(schema.children[i][0], array.children[i][0]) for i in range(array.n_children)]
    return ArrowColumn(
        "dictionary" if schema.dictionary else schema.format.decode(),
        array.length,
        array.null_count,
        array.offset,
        tuple(array.buffers[i] or 0 for i in range(array.n_buffers)),
        tuple(_column(*child, held) for child in children),
        held,
    )


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _address(capsule: Any, name: bytes) -> int:
    return int(_pointer(capsule, name))
