"""Runs that do not lie in a folder of this machine: addresses, and the bytes behind them as they are asked for."""
