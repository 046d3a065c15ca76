"""What a recipe will take on this machine: measured for seconds, computed from that, and compared with what it took."""
