"""What differs between machines: page tables, kernel layout, registers. `arch.base.arch_for(machine)` picks one."""
