"""What vLLM's kernel for experts leaves in memory: sums of float32 that it rounds to the engine's number format after that.

An engine adds the experts of a row up before it rounds. A pool has some of them, and of parts that were rounded one by one nobody
can make what an engine says. The kernel (`csrc/cpu/cpu_fused_moe.cpp`) writes what each expert says of each row to a buffer
that vLLM keeps between calls (`csrc/cpu/utils.hpp`, `ScratchPadManager`), in float32, sorted by expert. Where in it follows from sizes.
None of this is vLLM's interface: `expert_kernel` tries it, and does without where it is otherwise.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_MANAGER: Final = "_ZN9cpu_utils17ScratchPadManager22get_scratchpad_managerEv"
_ALIGNMENT: Final = 64
"""Bytes."""


MOST_BYTES: Final = 2**31
"""vLLM counts them in 32 bits."""


class _Manager(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.c_void_p))


class ScratchPad:
    """The buffer in the library at `path`. Raises `AttributeError` or `OSError` if it has none."""

    def __init__(self, path: str) -> None:
        find = getattr(ctypes.CDLL(path), _MANAGER)
        find.restype = ctypes.c_void_p
        self._find = find
        self._seen: tuple[int, int] = (0, 0)
        self._floats: npt.NDArray[np.float32] = np.zeros(0, np.float32)

    def sums(self, experts: int, pairs: int, size: int, hidden: int) -> npt.NDArray[np.float32]:
        """What the last call left (pairs, hidden): good until the next one.

        It has to have been for `experts` of intermediate `size`, in 16 bits, with one expert for each of `pairs` rows, sorted by
        expert. Raises `LookupError` if the buffer is too small for that.
        """
        counts = _aligned(4 * experts) + _aligned(4 * (experts + 1))
        first = counts + 2 * _aligned(4 * pairs) + _aligned(2 * pairs * size)
        floats = self._whole()
        begin, end = first // 4, first // 4 + pairs * hidden
        if end > len(floats):
            raise LookupError(f"vLLM's buffer has {4 * len(floats)} bytes, {4 * end} were expected")
        return floats[begin:end].reshape(pairs, hidden)

    def _whole(self) -> npt.NDArray[np.float32]:
        """All of it; it moves when it grows."""
        # Asked for each time: should it be one for each thread, this is the one of the call.
        manager = _Manager.from_address(self._find())
        now = manager.size, manager.data or 0
        if now != self._seen:
            if not (0 < now[0] <= MOST_BYTES and now[0] % _ALIGNMENT == now[1] % _ALIGNMENT == 0 < now[1]):
                raise LookupError("vLLM's buffer is not what it was")
            whole: Any = (ctypes.c_char * now[0]).from_address(now[1])
            self._floats, self._seen = np.frombuffer(whole, np.float32), now
        return self._floats


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
