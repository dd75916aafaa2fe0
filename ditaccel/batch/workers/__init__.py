"""Workers: who makes which item, on which device, in this process or in many."""
