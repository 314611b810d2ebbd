"""Compiled reading of numbers and words from bytes of text.

All take the buffer (or a bare pointer to it), where to begin, and the end that they may not pass.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mmreplay.importers.binary import load_u64
from mmreplay.jit import helper

NEWLINE, TAB, SPACE = 10, 9, 32
_0, _9, _A, _F, _X = 48, 57, 97, 102, 120
_UPPER_A, _UPPER_F = 65, 70
#: No name of an event, a call or a file is longer.
MOST_NAME: Final = 4096
_MOST_SECONDS: Final = 1 << 32
_ONES: Final = 0x0101010101010101
_HIGHS: Final = 0x8080808080808080
_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3


def fnv(word: str | bytes) -> Any:
    """The hash of a word, as :func:`hash_word` computes it (FNV-1a, 64 bits)."""
    value = _FNV_OFFSET
    for byte in word.encode() if isinstance(word, str) else word:
        value = (value ^ byte) * _FNV_PRIME & (1 << 64) - 1
    return np.uint64(value)


@helper
def hash_word(b: Any, at: Any, end: Any) -> Any:
    """FNV-1a of the bytes."""
    value = np.uint64(0xCBF29CE484222325)
    for k in range(at, end):
        value = (value ^ np.uint64(b[k])) * np.uint64(0x100000001B3)
    return value


@helper
def line_end(buffer: Any, b: Any, at: Any, end: Any) -> Any:
    """The next newline, or the end; eight bytes at a time."""
    while at + 8 <= end:
        word = load_u64(buffer, at) ^ np.uint64(0x0A0A0A0A0A0A0A0A)
        if (word - np.uint64(_ONES)) & ~word & np.uint64(_HIGHS):  # some byte is zero
            break
        at += 8
    while at < end and b[at] != NEWLINE:
        at += 1
    return at


@helper
def skip_spaces(b: Any, at: Any, end: Any) -> Any:
    """The next byte that is no blank."""
    while at < end and (b[at] == SPACE or b[at] == TAB):
        at += 1
    return at


@helper
def word_end(b: Any, at: Any, end: Any) -> Any:
    """The next blank."""
    while at < end and b[at] != SPACE and b[at] != TAB:
        at += 1
    return at


@helper
def is_digit(byte: Any) -> Any:
    """Whether it is 0 to 9."""
    return _0 <= byte <= _9


@helper
def decimal(b: Any, at: Any, end: Any) -> Any:
    """(value, next): digits as a number; a leading minus counts."""
    negative = at < end and b[at] == 45
    if negative:
        at += 1
    value = np.uint64(0)
    while at < end and _0 <= b[at] <= _9:
        value = value * np.uint64(10) + np.uint64(b[at] - _0)
        at += 1
    if negative:
        value = np.uint64(0) - value
    return value, at


@helper
def hexadecimal(b: Any, at: Any, end: Any) -> Any:
    """(value, next, digits): hex digits, with 0x or without."""
    if at + 1 < end and b[at] == _0 and (b[at + 1] == _X or b[at + 1] == 88):
        at += 2
    first = at
    value = np.uint64(0)
    while at < end:
        byte = b[at]
        if _0 <= byte <= _9:
            digit = byte - _0
        elif _A <= byte <= _F:
            digit = byte - _A + 10
        elif _UPPER_A <= byte <= _UPPER_F:
            digit = byte - _UPPER_A + 10
        else:
            break
        value = value << np.uint64(4) | np.uint64(digit)
        at += 1
    return value, at, at - first


@helper
def integer(b: Any, at: Any, end: Any) -> Any:
    """(value, next, digits): a decimal number, or a hexadecimal one with 0x."""
    if at + 1 < end and b[at] == _0 and b[at + 1] == _X:
        value, after, digits = hexadecimal(b, at, end)
    else:
        value, after = decimal(b, at, end)
        digits = after - at - (1 if at < end and b[at] == 45 else 0)
    return value, after, digits


@helper
def seconds(b: Any, at: Any, end: Any) -> Any:
    """(ns, next) of ``12.345678`` with up to nine places; -1 of what is no time (136 years)."""
    whole, at = decimal(b, at, end)
    if whole > np.uint64(_MOST_SECONDS):
        return np.int64(-1), at
    value = np.int64(whole) * 1_000_000_000
    if at < end and b[at] == 46:
        at += 1
        unit = 100_000_000
        while at < end and _0 <= b[at] <= _9:
            value += np.int64(b[at] - _0) * unit
            unit //= 10
            at += 1
    return value, at


@helper
def text_word(b: Any, at: Any, end: Any) -> Any:
    """Up to eight bytes as one little-endian number, padded with zeros."""
    word = np.uint64(0)
    for k in range(min(8, end - at)):
        word |= np.uint64(b[at + k]) << np.uint64(8 * k)
    return word
