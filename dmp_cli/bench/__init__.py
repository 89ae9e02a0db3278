"""How fast dmp is on this machine: what is measured, and what follows from it."""
