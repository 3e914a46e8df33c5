"""Files as disks, editors, mail programs and attackers leave them: seeded changes of bytes."""

import re
import struct
import zlib
from collections.abc import Callable

import numpy as np

JUNK = [
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n", b'"', b",", b"\t", b" ", b"\x1b[2J"),
    *(b"NaN", b"nan", b"inf", b"-inf", b"1e999", b"-1", b"0", b"9" * 30, b"9" * 5000, b"2024-13-45", b"0x"),
    *("Prüfstück".encode(), "缺陷😀".encode(), "u\u0308\u202e\u2028".encode(), b"\xed\xa0\x80", b"\xc3("),
    *(b"true", b"null", b"{}", b"[]", b"~", b"- ", b": ", b"&a [*a]", b"*a", b"!!python/name:os.system "),
    *(b"../../x", b"/dev/null", b"[" * 3000, b"{" * 3000, b"%n%s", b"=1+1", b"'; DROP TABLE"),
]
EXTREMES = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**20, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1]
GIANTS = [b"0", b"-1", b"1e308", b"1e-400", b"nan", b"inf", b"2147483648", b"9223372036854775808", b"9" * 400]

Mutation = Callable[[bytes, np.random.Generator], bytes]


def mutate(seeds: list[bytes], rng: np.random.Generator) -> bytes:
    """One of `seeds` after one to three changes."""
    content = seeds[rng.integers(len(seeds))]
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.1:
            content = _splice(content, seeds[rng.integers(len(seeds))], rng)
        else:
            content = MUTATIONS[rng.integers(len(MUTATIONS))](content, rng)
    return content


def claiming(content: bytes, height: int, width: int) -> bytes:
    """An image whose header says another size, as far as its format has room for it; a WebP unchanged."""
    changed = bytearray(content)
    if content.startswith(b"\x89PNG"):
        changed[16:24] = struct.pack(">II", width, height)
        return with_checksums(bytes(changed))
    if content.startswith(b"\xff\xd8"):
        start = re.search(rb"\xff[\xc0-\xc2]\0", content).start()
        changed[start + 5 : start + 9] = struct.pack(">HH", min(height, 65_535), min(width, 65_535))
    elif content.startswith(b"BM"):
        changed[18:26] = struct.pack("<ii", width, height)
    elif content.startswith(b"II"):  # TIFF: tags of 12 bytes with number, type, count, value
        for tag, side in ((256, width), (257, height)):
            start = re.search(struct.pack("<H", tag) + b"[\3\4]\0\1\0\0\0", content).start()
            changed[start + 2 : start + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(changed)


def with_checksums(content: bytes) -> bytes:
    """The chunks of a PNG get the checksums they should have, or these alone would refuse every change."""
    changed, start = bytearray(content), 8
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])
        if end <= len(content):
            changed[end - 4 : end] = zlib.crc32(content[start + 4 : end - 4]).to_bytes(4)
        start = end
    return bytes(changed)


def _place(content: bytes, rng: np.random.Generator) -> int:
    """Any place, half of the time one in the first bytes, where headers are."""
    end = len(content) + 1
    return int(rng.integers(min(end, 64) if rng.random() < 0.5 else end))


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9) if changed else 0):
        changed[min(_place(content, rng), len(changed) - 1)] ^= 1 << rng.integers(8)
    return bytes(changed)


def _truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)]


def _drop(content: bytes, rng: np.random.Generator) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start + int(rng.integers(1, 200)) :]


def _repeat(content: bytes, rng: np.random.Generator) -> bytes:
    start = _place(content, rng)
    piece = content[start : start + int(rng.integers(1, 500))]
    return content[:start] + piece * int(rng.integers(2, 5)) + content[start:]


def _insert(content: bytes, rng: np.random.Generator) -> bytes:
    start, noise = _place(content, rng), rng.random() < 0.2
    junk = rng.bytes(rng.integers(1, 300)) if noise else JUNK[rng.integers(len(JUNK))]
    return content[:start] + junk + content[start:]


def _overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    """A number of a header becomes an extreme one, such as the width of the image."""
    start, kind = _place(content, rng), rng.choice([">H", "<H", ">I", "<I", "<Q"])
    value = EXTREMES[rng.integers(len(EXTREMES))] % 2 ** (8 * struct.calcsize(kind))
    packed = struct.pack(kind, value)
    return content[:start] + packed + content[start + len(packed) :]


def _blank(content: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of zeros, as an interrupted download leaves it."""
    start, length = _place(content, rng), int(rng.integers(1, 2000))
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def _number(content: bytes, rng: np.random.Generator) -> bytes:
    """A number of a text becomes a giant, or none."""
    found = list(re.finditer(rb"\d+(\.\d+)?", content[:100_000]))
    if not found:
        return _flip(content, rng)
    start, end = found[rng.integers(len(found))].span()
    return content[:start] + GIANTS[rng.integers(len(GIANTS))] + content[end:]


def _word(content: bytes, rng: np.random.Generator) -> bytes:
    """A word of a text becomes junk: a key, a column, a label."""
    found = list(re.finditer(rb"[A-Za-z_]+", content[:100_000]))
    if not found:
        return _insert(content, rng)
    start, end = found[rng.integers(len(found))].span()
    return content[:start] + JUNK[rng.integers(len(JUNK))] + content[end:]


def _lines(content: bytes, rng: np.random.Generator) -> bytes:
    """Lines in another order, twice, or with the line ends of other systems."""
    lines = content.split(b"\n")
    kind, chosen = rng.integers(4), int(rng.integers(len(lines)))
    if kind == 0:
        return b"\r\n".join(lines)
    if kind == 1:
        return b"\r".join(lines)
    if kind == 2:
        return b"\n".join([*lines, lines[chosen]])
    return b"\n".join(lines[index] for index in rng.permutation(len(lines)))


def _encode(content: bytes, rng: np.random.Generator) -> bytes:
    """Saved by an editor in another encoding, with or without a byte order mark."""
    return content.decode("latin-1").encode(["utf-8-sig", "utf-16", "utf-32", "utf-7"][rng.integers(4)])


def _splice(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)] + other[_place(other, rng) :]


MUTATIONS: list[Mutation] = [
    *(_flip, _truncate, _drop, _repeat, _insert, _overwrite, _blank, _number, _word, _lines, _encode)
]
