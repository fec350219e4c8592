"""Metrics of generators. None is built yet: train.py says so where --metrics names one."""
