"""Devices in processes of their own, where an engine has several: one interpreter could not generate on all of them at
once."""
