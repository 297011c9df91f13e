"""A Secret as a volume, replaced as the kubelet replaces it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path


class MountedSecret:
    """Files that are symbolic links through `..data`, which is swapped for another folder at each update.

    See `AtomicWriter` in https://github.com/kubernetes/kubernetes/blob/master/pkg/volume/util/atomic_writer.go.
    """

    def __init__(self, folder: Path, data: Mapping[str, str]) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        folder.mkdir(parents=True, exist_ok=True)
        self.update(data)

    @property
    def token(self) -> Path:
        """What `TLT_TOKEN_FILE` names."""
        return self.folder / "token"

    def update(self, data: Mapping[str, str]) -> None:
        """The files become exactly these."""
        version = self.folder / f"..version-{next(self._numbers)}"
        version.mkdir()
        for name, text in data.items():
            (version / name).write_text(text)
        link = self.folder / "..data_tmp"
        link.symlink_to(version.name)
        os.replace(link, self.folder / "..data")
        for name in data:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(Path("..data") / name)
        for path in self.folder.iterdir():
            if not path.name.startswith("..") and path.name not in data:
                path.unlink()
