"""Arrays that touch unmapped memory: one byte read or written too far ends the test run instead of going unseen."""

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PROT_NONE = 0


def guarded(values: np.ndarray, at: str = "end") -> np.ndarray:
    """Returns a copy of `values` that ends right before an unmapped page ("end") or starts behind one ("start")."""
    page = mmap.PAGESIZE
    body = -(-max(values.nbytes, 1) // page) * page
    region = mmap.mmap(-1, body + 2 * page)
    raw = np.frombuffer(region, np.uint8)  # keeps `region` alive
    for offset in (0, page + body):
        if _libc.mprotect(raw.ctypes.data + offset, page, _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = page if at == "start" else page + body - values.nbytes
    inside = raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    inside[...] = values
    return inside
