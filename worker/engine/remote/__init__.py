"""Devices in processes of their own, for an engine with several devices.

In one process, Python's global interpreter lock would keep the devices from generating text at the same time.
"""
