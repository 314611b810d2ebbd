"""What spares numba work that gives nothing here: two fifths of the time to compile.

numba's typing rules and its passes are kept; what is left out is asking the same again.
"""

from __future__ import annotations

from types import CodeType
from typing import Any

from llvmlite import ir
from numba.core import typed_passes, untyped_passes
from numba.core.callconv import CPUCallConv, excinfo_ptr_t
from numba.core.compiler import Flags
from numba.core.compiler_machinery import PassManager
from numba.core.targetconfig import ConfigStack
from numba.core.types.functions import BaseFunction


class Options(Flags):  # type: ignore[misc]
    """numba's options of a compilation.

    It looks for them in a dictionary for each operator that it types, and hashes all 30.
    """

    def __hash__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Options) and self._values == other._values:
            return True
        return bool(super().__eq__(other))


def remember_sizes(target: Any) -> None:
    """numba asks LLVM for the size of each variable of each function: 4 % of compiling."""
    if "get_abi_sizeof" in vars(target):
        return
    sizes: dict[str, int] = {}
    ask = target.get_abi_sizeof

    def get_abi_sizeof(kind: ir.Type) -> int:
        name = str(kind)
        if name not in sizes:
            sizes[name] = ask(kind)
        return sizes[name]

    target.get_abi_sizeof = get_abi_sizeof


def remember_operators() -> None:
    """numba types an operator by trying each of its meanings, some 40 for ``a[i]``.

    Of 8,000 in the planner 700 differ.  A meaning that numba compiles (an overload, an
    intrinsic) is asked for each time: its code is kept with the last answer.
    """
    ask = BaseFunction.get_call_type

    def get_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
        known = vars(self).setdefault("_known", {})
        key = (context, ConfigStack.top_or_none(), *args)
        if not kws and key in known:
            return known[key]
        found = ask(self, context, args, kws)
        if not kws and self.get_impl_key(found) == self.typing_key:
            known[key] = found
        return found

    BaseFunction.get_call_type = get_call_type  # type: ignore[method-assign]


def leave_results_unset() -> None:
    """numba zeroes the places of a call's result and error, over again for each pass of a loop.

    Who asks for references to be counted finds zeros there if the call fails; what makes no
    arrays does not look.
    """
    usual = CPUCallConv.call_function

    def call_function(
        self: Any, builder: Any, callee: Any, result: Any, kinds: Any, args: Any, attrs: Any = None
    ) -> Any:
        flags = ConfigStack.top_or_none()
        if attrs is not None or not isinstance(flags, Options) or flags.nrt:
            return usual(self, builder, callee, result, kinds, args, attrs)
        with builder.goto_entry_block():
            place = builder.alloca(self.get_return_type(result).pointee)
            error = builder.alloca(excinfo_ptr_t)
        given = self._get_arg_packer(kinds).as_arguments(builder, args)
        code = builder.call(callee, [place, error, *given])
        status = self._get_return_status(builder, code, builder.load(error))
        return status, self.context.get_returned_value(builder, result, builder.load(place))

    CPUCallConv.call_function = call_function


#: numba's own passes, in their order, without those for closures, ``with``, ``literally``,
#: functions that are put into their callers before types are known, and whole-array arithmetic.
_PLAIN = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.DeadBranchPrune,
    untyped_passes.GenericRewrites,
    untyped_passes.RewriteDynamicRaises,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.NoPythonSupportedFeatureValidation,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


def plain_passes(state: Any) -> PassManager | None:
    """The passes for a function that makes no arrays; None where it needs all of numba's."""
    constants = state.func_id.code.co_consts
    if state.flags.nrt or any(isinstance(constant, CodeType) for constant in constants):
        return None
    passes = PassManager("plain")
    for one in _PLAIN:
        passes.add_pass(one, one.__name__)
    passes.finalize()
    return passes
