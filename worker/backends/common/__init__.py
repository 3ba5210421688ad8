"""The parts that several backends share."""
