"""What stands around the machine on the board: serial host link, memory behind AXI4, clock."""
