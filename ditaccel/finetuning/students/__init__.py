"""Students: one file each, what fine-tuning trains for one method."""
