# SPDX-License-Identifier: Apache-2.0
"""The gRPC service of the old server (extra ``grpc``).

``optimized_lipsyncsrv.proto`` is what its clients have compiled in, and ours to give to new ones.
"""
