# SPDX-License-Identifier: Apache-2.0
"""The avatars of a front: which there are, who uses which version, and changes for the server.

leases      versions that are in use, and the packages that are open for it
directory   names and packages for clients; a lease on what an engine has loaded
changes     loading, replacing and unloading, which the supervisor does
"""
