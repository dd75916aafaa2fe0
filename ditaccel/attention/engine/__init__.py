"""What carries attention methods out: planners and plans, masks, the processor, the runtime."""
