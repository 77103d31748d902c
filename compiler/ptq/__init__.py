"""Post-training quantisation that looks at the data: how formats are chosen, and what they cost."""
