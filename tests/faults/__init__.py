"""Faults made on purpose, and what `dmp`, run as a process, does about each."""
