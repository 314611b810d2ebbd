"""The VMA map, compiled: replays address-space operations as a kernel's rules say.

INTERFACE (the bodies follow; signatures and meaning stay):

``apply(state, rules, space, kind, address, length, address2, length2, prot, flags, file_offset,
file_id, result) -> Status``
    ``rules`` is ``load_rules(name).vector`` (int64).  ``kind`` is ``schema.OpKind``; the other
    arguments are the trace's columns of that name, with :data:`vma_state.NONE` for null.
    ``file_id``: 0 anonymous, else any identity > 0 of the mapped file.  ``result``: return value,
    **-errno** where the call failed.  The recorded result address is authoritative; with NONE the
    kernel's own search places the mapping.  FORK: ``address2`` is the child's space (must be
    empty).  EXEC and PROCESS_EXIT clear ``space``.  Effects and findings: ``state.effect_*``
    (``info[EFFECTS]`` entries) and ``state.info`` (:class:`vma_state.Info`).

``fault(state, rules, space, address, write, execute) -> Status``
    VMA of the fault in ``info``; grows a stack; a first private write gives the VMA an anon_vma
    (a mergeable neighbour's, if there is one: mm/vma.c:find_mergeable_anon_vma).

``lookup(state, space, address) -> slot or -1``;  ``state.uid[slot]`` is the vma id.
``search(state, rules, space, length, flags, file_id, file_offset) -> address`` top-down search.
``cover(state, rules, space, start, end) -> Status``  makes UNKNOWN VMAs of all holes in the range.
``insert(state, rules, space, start, end, vm_flags, pgoff, file_id, anon) -> Status``  one known
VMA as it is (from a snapshot or a MMAP2 record): replaces what is there, never merges;
``anon``: 1 it has an anon_vma, 0 it has none.
``dump(state, space) -> list[Vma]``  for tests and ``show`` (python).
"""
