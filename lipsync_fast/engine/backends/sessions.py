# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's sessions of the CPU backend: equal networks are held once.

Avatars share the published audio encoder, and versions of an avatar often share all networks. A
session may be run by many threads at a time.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from weakref import WeakValueDictionary

import onnxruntime as ort


class Sessions:
    """Makes sessions that run a frame in one thread; each lives as long as someone holds it."""

    def __init__(self) -> None:
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = 1
        self._options.inter_op_num_threads = 1
        # With a known batch every shape is known, and additions and ReLUs merge into convolutions.
        self._options.add_free_dimension_override_by_name("batch", 1)
        self._options.log_severity_level = 4  # what fails is an exception, told by who catches it
        _share_arena(self._options)
        self._lock = threading.Lock()
        self._made: WeakValueDictionary[bytes, ort.InferenceSession] = WeakValueDictionary()

    def get(self, model: bytes | memoryview) -> ort.InferenceSession:
        """A session of a network, given its ONNX; for any thread.

        Raises:
            Exception: of ONNX Runtime's own classes, by the kind of damage.
        """
        key = hashlib.blake2b(model, digest_size=32).digest()
        with self._lock:
            session = self._made.get(key)
            if session is None:
                session = ort.InferenceSession(
                    bytes(model), self._options, providers=["CPUExecutionProvider"]
                )
                self._made[key] = session
            return session


@functools.cache
def _register_arena() -> None:
    arena, default = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", arena, 0, default), None)


def _share_arena(options: ort.SessionOptions) -> None:
    """One arena for all sessions of the process.

    Each would keep its own, of the size that its largest tensors once needed: 100 MB an avatar.
    """
    _register_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
