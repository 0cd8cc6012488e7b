# SPDX-License-Identifier: Apache-2.0
"""Other protocols, in a process of their own beside the fronts, whose client it is.

    clients ⇄ an adapter (``rpc``) ⇄ ``fronts`` ⇄ a front's inner listener

Adapters hold no avatars, sound or pictures beyond what passes through them. Their threads and loops
are their own: nothing that happens here holds up a front.
"""
