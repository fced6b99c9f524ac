"""Tolerant tar reading: a bad header costs one member, not the tar."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK_SIZE = tarfile.BLOCKSIZE
MAX_HEADER = 32 * 1024
"""Largest extended header (long names, attributes) in bytes; tarfile reads any size, and searches it in quadratic time.
"""
LONG_NUMBER = re.compile(rb"\d{400}")
"""More digits in a row than a header needs: tarfile's patterns take time quadratic in their number."""
STRIDE = 1 << 20
"""Bytes that are searched at a time for the next header."""
COMPRESSION_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    name: str
    """May contain surrogate escapes of bytes that are not UTF-8."""
    offset: int
    """Offset of the content, in bytes."""
    size: int


class HeaderFile:
    """File object for tarfile that reads headers of limited size, and no content."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self.file.read(size)
        if LONG_NUMBER.search(data):
            raise tarfile.ReadError("a header with a number of hundreds of digits")
        return data


def read_members(path: Path, rejected: Counter[str]) -> Iterator[Member]:
    """Yields the regular files of a tar in order. Other members, and those with invalid headers, are counted by reason.

    After a header that cannot be read, or that declares more bytes than the file has, the next valid header is searched
    for. Raises tarfile.ReadError if the file is not a tar or is cut short.
    """
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        headers = HeaderFile(file)
        # tarfile reads headers when it opens a file for reading, but does nothing when it opens one for writing
        tar = tarfile.TarFile(fileobj=headers, mode="w", encoding="utf-8", errors="surrogateescape")  # pyright: ignore[reportArgumentType]
        position: int | None = 0
        finished = False
        while position is not None:
            file.seek(position)
            block = file.read(BLOCK_SIZE)
            if len(block) == BLOCK_SIZE and not any(block):
                finished = True
                position = next_header(file, position + BLOCK_SIZE)  # another tar may be appended
                continue
            if not block:
                break
            finished = False
            file.seek(position)
            try:
                header = tarfile.TarInfo.fromtarfile(tar)
            except Exception as e:  # tarfile raises what int(), decode() and slicing raise for invalid bytes
                following = next_header(file, max(position + BLOCK_SIZE, file.tell()))
                if position == 0 and following is None:
                    raise tarfile.ReadError(describe_non_tar(block, end, e)) from e
                if following is not None:
                    rejected["member's header cannot be read"] += 1
                position = following
                continue
            reason = why_unusable(header, end)
            if reason:
                rejected[reason] += 1
            elif header.isreg():
                yield Member(header.name, header.offset_data, header.size)
            sound = position < tar.offset <= end and reason != TOO_LARGE
            position = tar.offset if sound else next_header(file, max(position + BLOCK_SIZE, header.offset_data))
        if not finished and not ends_in_zeros(file, end):
            raise tarfile.ReadError("no end-of-archive marker: the file is cut short")


TOO_LARGE = "member is larger than its file"


def why_unusable(header: tarfile.TarInfo, end: int) -> str:
    """Returns why a member cannot be used; empty if it can be, and for folders."""
    if header.isdir():
        return ""
    if header.issym() or header.islnk():
        return "member is a link"
    if not header.isreg():
        return "member is no file"
    if header.issparse():
        return "member is sparse"
    if header.size < 0 or header.offset_data + header.size > end:
        return TOO_LARGE
    return ""


def next_header(file: BinaryIO, start: int) -> int | None:
    """Returns the position of the first valid header at a block boundary from `start` on; None if there is none."""
    position = -(-start // BLOCK_SIZE) * BLOCK_SIZE
    while True:
        file.seek(position)
        data = file.read(STRIDE)
        found = data.find(b"ustar")
        while found >= 0:
            begin = found - 257  # the magic's offset in a header
            if begin >= 0 and begin % BLOCK_SIZE == 0 and is_header(data[begin : begin + BLOCK_SIZE]):
                return position + begin
            found = data.find(b"ustar", found + 1)
        if len(data) < STRIDE:
            return None
        position += STRIDE


def is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except Exception:  # as in read_members
        return False
    return True


def ends_in_zeros(file: BinaryIO, end: int) -> bool:
    if end < BLOCK_SIZE:
        return False
    file.seek(end - BLOCK_SIZE)
    return not any(file.read(BLOCK_SIZE))


def describe_non_tar(block: bytes, size: int, error: Exception) -> str:
    """Describes for an error a file that does not begin with a tar's header."""
    for magic, name in COMPRESSION_MAGIC.items():
        if block.startswith(magic):
            return f"it is compressed ({name}); tars are read in place, so uncompress it"
    return f"it has {size} bytes, which do not begin with a tar's header ({error})"
