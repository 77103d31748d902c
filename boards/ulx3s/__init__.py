"""The ULX3S: a machine with memory and a serial host link on its ECP5, built with open tools only."""
