"""Machine profiles: topology and costs of the hardware, each number with its origin."""

from mmreplay.machine.loader import list_machines, load_machine, match_machine
from mmreplay.machine.profile import Machine, Number
from mmreplay.machine.topology import extrapolated

__all__ = [
    "Machine",
    "Number",
    "extrapolated",
    "list_machines",
    "load_machine",
    "match_machine",
]
