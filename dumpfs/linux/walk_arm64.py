"""Walking arm64 kernel stacks, by their frame records.

Sources: Linux arch/arm64/kernel/stacktrace.c, arch/arm64/include/asm/stacktrace/frame.h (records of exceptions since
6.13), arch/arm64/include/asm/ptrace.h.
"""

from __future__ import annotations

from dumpfs.linux.frames import Frame, Registers, Walker


class Arm64Walker(Walker):
    """By the chain of (x29, return address) pairs."""

    name = "frame pointers"

    def walk(self, registers: Registers, running: bool) -> None:
        pc, sp, fp = registers["pc"], registers["sp"], registers["x29"]
        exact = running
        full: Registers | None = registers if running else None
        while self.add(Frame(pc, sp, exact, registers=full)):
            full = None
            if not fp:
                return
            sp = fp + 16
            fp, pc, exact = self.space.read_u64(fp), self.space.read_u64(fp + 8), False
            if fp or pc:
                pc |= self.ground.pac_mask if pc >> 55 & 1 else 0
                if not self.ground.code.is_text(pc):
                    self.end = f"{pc:#x} is no code"
                    return
                continue
            interrupted = self._exception(sp - 16)
            if interrupted is None:
                return
            pc, sp, fp = interrupted
            exact = True

    def _exception(self, record: int) -> tuple[int, int, int] | None:
        """(pc, sp, x29) behind the empty record of an exception since 6.13; None at the end of the stack."""
        types = self.ground.types
        if types is None or not types.has("frame_record_meta", "type"):
            return None
        kind = types.member("frame_record_meta", "type")
        if self.space.read_int(record + kind.offset, kind.size) != 2:  # FRAME_META_TYPE_PT_REGS
            return None
        regs = record - types.offset("pt_regs", "stackframe")
        if not self.space.read_u64(regs + types.offset("pt_regs", "pstate")) & 0xF:
            return None  # from user mode
        pc, sp, fp = (self.space.read_u64(regs + types.offset("pt_regs", n)) for n in ("pc", "sp", "regs[29]"))
        return pc, sp, fp
