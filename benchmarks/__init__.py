"""What the stages cost beside the bare work they ride on; `make bench` runs all of it."""
