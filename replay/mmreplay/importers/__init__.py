"""Importers: recordings of other tools to the canonical trace.

container -> record stream in windows -> event batches -> pairing -> trace; one module
per format up to the event batch, everything behind it is shared.  Start at
:func:`mmreplay.importers.registry.import_trace`.
"""
