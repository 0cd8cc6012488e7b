# SPDX-License-Identifier: Apache-2.0
"""Files of keys: read whole, with a bound."""

from __future__ import annotations

import os
import stat

from lipsync_fast.errors import ConfigError, words_of

MOST_BYTES = 4 << 20


def read_keys(path: str, key: str) -> bytes:
    """The bytes of a file of keys.

    Args:
        path: of the file.
        key: of the configuration, or an option, that names it, for errors.

    Raises:
        ConfigError: it is missing, no file, or too large.
    """
    try:
        # Not waiting: a pipe that nobody fills would be waited for for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{key}: {path} is not a file")
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path} cannot be read ({words_of(error)})") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{key}: {path} has more than {MOST_BYTES} bytes")
    return data
