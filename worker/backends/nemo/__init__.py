"""The parts of the backends that run on NeMo."""
