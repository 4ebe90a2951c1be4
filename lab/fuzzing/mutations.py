"""Bytes -> other bytes, all decided by a generator: flips, cuts, splices, and numbers as hostile headers hold them."""

from collections.abc import Callable

import numpy as np

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADER = 128  # bytes; half of the changes are made here, where files say what they are
LARGEST = 2**16  # of a mutated file


def mutated(seeds: list[bytes], random: np.random.Generator) -> bytes:
    """One of the seeds with one to eight changes."""
    content = seeds[random.integers(len(seeds))]
    for _ in range(1 + min(7, random.geometric(0.5))):
        change = CHANGES[random.integers(len(CHANGES))]
        content = change(content, seeds, random)[:LARGEST]
    return content


def place(content: bytes, random: np.random.Generator) -> int:
    """A position; the header's are as likely as all others together."""
    end = min(HEADER, len(content)) if random.random() < 0.5 else len(content)
    return int(random.integers(end)) if end else 0


def flip(content: bytes, _: list[bytes], random: np.random.Generator) -> bytes:
    at = place(content, random)
    return content[:at] + bytes([content[at] ^ 1 << random.integers(8)]) + content[at + 1 :] if content else content


def byte(content: bytes, _: list[bytes], random: np.random.Generator) -> bytes:
    at = place(content, random)
    return content[:at] + random.bytes(1) + content[at + 1 :]


def number(content: bytes, _: list[bytes], random: np.random.Generator) -> bytes:
    """A length or a size becomes one that somebody forgot to check."""
    at, width = place(content, random), int(random.choice((1, 2, 4)))
    value = int(random.choice(NUMBERS)) % 256**width
    return content[:at] + value.to_bytes(width, str(random.choice(("little", "big")))) + content[at + width :]


def cut(content: bytes, _: list[bytes], random: np.random.Generator) -> bytes:
    return content[: place(content, random)]


def remove(content: bytes, _: list[bytes], random: np.random.Generator) -> bytes:
    at = place(content, random)
    return content[:at] + content[at + int(random.integers(1, 64)) :]


def repeat(content: bytes, _: list[bytes], random: np.random.Generator) -> bytes:
    at, length = place(content, random), int(random.integers(1, 64))
    return content[:at] + content[at : at + length] * int(random.integers(2, 50)) + content[at + length :]


def splice(content: bytes, seeds: list[bytes], random: np.random.Generator) -> bytes:
    """The beginning of one file and the end of another."""
    other = seeds[random.integers(len(seeds))]
    return content[: place(content, random)] + other[place(other, random) :]


def insert(content: bytes, seeds: list[bytes], random: np.random.Generator) -> bytes:
    """A piece of another file in the middle of this one."""
    at, other = place(content, random), seeds[random.integers(len(seeds))]
    start = place(other, random)
    return content[:at] + other[start : start + int(random.integers(1, 256))] + content[at:]


Change = Callable[[bytes, list[bytes], np.random.Generator], bytes]
CHANGES: tuple[Change, ...] = (flip, flip, byte, number, number, number, cut, remove, repeat, splice, insert)


def smaller(content: bytes, still: Callable[[bytes], bool], tries: int = 400) -> bytes:
    """A shorter input for which `still` holds: pieces are left out, from halves down to bytes."""
    size = len(content) // 2
    while size and tries > 0:
        at = 0
        while at < len(content) and tries > 0:
            shorter, tries = content[:at] + content[at + size :], tries - 1
            content, at = (shorter, at) if still(shorter) else (content, at + size)
        size //= 2
    return content
