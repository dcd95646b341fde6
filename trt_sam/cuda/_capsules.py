"""DLPack 0.x's structures (`dlpack.h`) and Python's capsules around them, as `__dlpack__` without `max_version` gives them."""

from __future__ import annotations

import ctypes

CUDA, CUDA_MANAGED = 2, 13
LEGACY_STREAM = 1
CODES = {"i": 0, "u": 1, "f": 2}
NAME, USED = b"dltensor", b"used_dltensor"


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Lent(ctypes.Structure):
    """One block, which a consumer's call of the deleter frees."""

    _fields_ = (("managed", Managed), ("shape", ctypes.c_int64 * 4))


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
allocate = ctypes.pythonapi.PyMem_RawMalloc
allocate.restype, allocate.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
# C code, because consumers also call it where a Python error is under way, which a callback of ours would replace.
free = ctypes.cast(ctypes.pythonapi.PyMem_RawFree, ctypes.c_void_p)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
set_name = ctypes.pythonapi.PyCapsule_SetName
set_name.restype, set_name.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
