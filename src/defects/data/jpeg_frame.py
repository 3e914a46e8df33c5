"""The segments of a JPEG before its first scan: size, kind of coding, Huffman tables."""

import struct
from typing import NamedTuple


class JpegFrame(NamedTuple):
    """Of the first picture of a JPEG file."""

    marker: int  # 0xC0 to 0xCF: the kind of coding
    precision: int  # bits
    height: int
    width: int
    components: int
    data: int  # where the entropy-coded data of the first scan begin
    zero_codes: dict[int, int]  # Huffman table (class << 4 | number) -> symbol of the code of all zeros


def read_jpeg_frame(content: bytes) -> JpegFrame:
    """Raises ValueError where the segments before the first scan are not whole."""
    position = 2
    marker = 0
    frame = None
    zero_codes: dict[int, int] = {}
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            raise ValueError("no marker")
        kind = content[position + 1]
        if kind == 0xFF:  # a fill byte
            position += 1
            continue
        length = int.from_bytes(content[position + 2 : position + 4])
        segment = content[position + 4 : position + 2 + length]
        position += 2 + length
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            marker = kind
            frame = struct.unpack_from(">BHHB", segment)  # precision, height, width, components
        elif kind == 0xC4:
            zero_codes |= _zero_codes(segment)
        elif kind == 0xDA:
            if frame is None:
                raise ValueError("no frame before the first scan")
            return JpegFrame(marker, *frame, position, zero_codes)
    raise ValueError("no scan")


def _zero_codes(segment: bytes) -> dict[int, int]:
    """Of a segment of Huffman tables: which symbol has the shortest code, which is all zeros."""
    symbols = {}
    position = 0
    while position < len(segment):
        count = sum(segment[position + 1 : position + 17])
        symbols[segment[position]] = segment[position + 17]
        position += 17 + count
    return symbols
