"""Measurements of what the project promises, side by side with what they are compared to. `make bench` runs them
all."""
