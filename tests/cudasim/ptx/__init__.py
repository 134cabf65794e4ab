"""Translates PTX to C++, for modules loaded as PTX text. tests/cudasim/README.md describes what it proves."""
