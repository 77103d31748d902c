"""Design-space exploration: one model on many machines, by the timing model."""
