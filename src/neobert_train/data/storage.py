"""Files by path or URL (stand-in until the network part arrives)."""

import os
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Network:
    max_retries: int = 8
    timeout_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class StoredFile:
    path: str
    network: Network = Network()

    @property
    def is_remote(self) -> bool:
        return is_url(self.path)

    def get_size(self) -> int:
        return os.path.getsize(self.path)

    def can_seek(self) -> bool:
        return True

    def open(self) -> BinaryIO:
        return open(self.path, "rb")


class StorageError(OSError):
    pass


def is_url(path: str) -> bool:
    return "://" in path


def list_files(pattern: str, network: Network) -> list[str]:
    return [pattern]
