"""An object of a store as a file that is read in parts."""

import io

from blip.storage.store import Store


class ObjectFile(io.RawIOBase):
    """Reads of an object what is asked for, and no more."""

    def __init__(self, store: Store, key: str):
        """Raises StoreError, MissingKeyError."""
        self.store, self.key = store, key
        self.length, self.position = store.size(key), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        number = max(0, min(len(buffer), self.length - self.position))
        if number:
            buffer[:number] = self.store.read(self.key, self.position, number)
            self.position += number
        return number
