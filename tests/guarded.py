"""Arrays that end at a page that must not be touched: a kernel that reads or writes past its operand dies at once."""

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_PROT_NONE = 0


def guarded(array: np.ndarray) -> np.ndarray:
    """Returns a copy whose last byte is the last one before an inaccessible page."""
    array = np.ascontiguousarray(array)
    pages = -(-max(1, array.nbytes) // mmap.PAGESIZE)
    region = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    whole = np.frombuffer(region, np.uint8)
    guard = whole.ctypes.data + pages * mmap.PAGESIZE
    if _libc.mprotect(ctypes.c_void_p(guard), mmap.PAGESIZE, _PROT_NONE) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    end = pages * mmap.PAGESIZE
    copy = whole[end - array.nbytes : end].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
