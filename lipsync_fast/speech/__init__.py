# SPDX-License-Identifier: Apache-2.0
"""Text to speech: what makes the sound where a client sends text (``utterance.say``).

A plug-in is a function of the entry point group ``lipsync_fast.speech`` (or ``module:function``)
that takes the configuration's section and gives a ``Speech``.
"""

from lipsync_fast.speech.engines import GROUP, Speech, check_engine, open_speech

__all__ = ["GROUP", "Speech", "check_engine", "open_speech"]
