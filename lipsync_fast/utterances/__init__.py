# SPDX-License-Identifier: Apache-2.0
"""Frames that were made before: how they are known, where they are kept, and what goes with them.

front   which sounds begin as one that is kept, and over which pictures of the avatar (keys)
engine  a frame that is kept is put into its picture without a network; what is made is kept
store   one SQLite file: values by the very samples, picture and look that they were made of
"""
