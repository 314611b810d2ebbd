"""Object code put into this process.

Where it is the plain kind that LLVM makes for x86-64 (ELF, every place in full addresses),
loading it is copying its sections and adding where they lie.  Anything else LLVM links;
loading LLVM takes as long as reading a quarter of a million events.

ELF: https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html; x86-64's relocations:
https://gitlab.com/x86-psABIs/x86-64-ABI.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable
from typing import Any, Final

#: The symbol that object code is called by: int32 failed(words, results), both int64.
ENTRY: Final = "mmreplay_entry"
#: Integers that it may return.
MOST_RESULTS: Final = 8
_Code = Callable[[Any, Any], int]
_KIND: Final = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
_OWNERS: Final[list[Any]] = []  # of code that is called
_X86_64: Final = b"\x7fELF\x02\x01\x01"
_MACHINE: Final = 62
_SYMBOLS, _ADDENDS, _BYTES_OF_ZERO, _ADDENDLESS = 2, 4, 8, 9  # kinds of sections
_LOADED: Final = 2  # flag of a section
_FULL_ADDRESS: Final = 1  # R_X86_64_64
_NO_PLACE: Final = 0
_READ_AND_RUN: Final = mmap.PROT_READ | mmap.PROT_EXEC


class _NotPlain(Exception):
    """Code that LLVM must link."""


def link(code: bytes) -> _Code:
    """The entry of object code, to be called without the GIL."""
    try:
        address = _placed(code)
    except (_NotPlain, struct.error, OSError, AttributeError):
        address = _linked(code)
    return _KIND(address)


def _placed(code: bytes) -> int:
    """Copy the sections; returns the entry's address."""
    if not code.startswith(_X86_64) or struct.unpack_from("<HH", code, 16) != (1, _MACHINE):
        raise _NotPlain
    table, size, count = (*struct.unpack_from("<Q", code, 40), *struct.unpack_from("<HH", code, 58))
    # Each: name, kind, flags, address, begin, length, link, info, alignment, entry's size.
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, table + i * size) for i in range(count)]
    places: dict[int, int] = {}
    end = 0
    for number, (_, kind, flags, _, _, length, _, _, align, _) in enumerate(sections):
        if flags & _LOADED:
            if kind == _BYTES_OF_ZERO or align > mmap.PAGESIZE:
                raise _NotPlain
            end += -end % max(align, 1)
            places[number] = end
            end += length
    memory = mmap.mmap(-1, max(end, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for number, place in places.items():
        begin, length = sections[number][4:6]
        memory[place : place + length] = code[begin : begin + length]
    (symbols,) = (section for section in sections if section[1] == _SYMBOLS)
    names = sections[symbols[6]][4]
    addresses = [
        _address(code, symbols[4] + at, names, base, places) for at in range(0, symbols[5], 24)
    ]
    for section in sections:
        if section[7] in places and section[1] in (_ADDENDS, _ADDENDLESS):
            if section[1] == _ADDENDLESS:
                raise _NotPlain
            for at in range(section[4], section[4] + section[5], 24):
                place, how, addend = struct.unpack_from("<QQq", code, at)
                address = addresses[how >> 32]
                if how & 0xFFFFFFFF != _FULL_ADDRESS or address is None:
                    raise _NotPlain
                struct.pack_into("<Q", memory, places[section[7]] + place, address[1] + addend)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(len(memory)), _READ_AND_RUN):
        raise OSError(ctypes.get_errno(), "mprotect")
    _OWNERS.append(memory)
    return next(one[1] for one in addresses if one is not None and one[0] == ENTRY)


def _address(
    code: bytes, at: int, names: int, base: int, places: dict[int, int]
) -> tuple[str, int] | None:
    """A symbol's name and address; None where it has none that is needed."""
    name_at, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", code, at)
    name = code[names + name_at : code.index(b"\0", names + name_at)].decode()
    if section in places:
        return name, base + places[section] + value
    if section == _NO_PLACE and name:
        found = ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value
        return name, found or 0
    return None


def _linked(code: bytes) -> int:
    """Let LLVM do it."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _OWNERS.append(engine)
    return int(engine.get_function_address(ENTRY))
